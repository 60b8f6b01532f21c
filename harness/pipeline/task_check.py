"""Check one task: show its prompts, grade its references, and name its traps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.panel import Panel

from harness.config.models import Chat
from harness.errors import ConfigError
from harness.lm.chat import Renderer
from harness.lmeval.generation_settings import check_stated_generation
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.lmeval.task_files import read_task_file
from harness.lmeval.traps import traps
from harness.lmeval.trial import GradeCheck, describe_items, try_task
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from harness.terminal.console import SafeConsole


def check_task(console: SafeConsole, name: str, include: Sequence[Path], data: Sequence[str]) -> bool:
    """Print a task's prompts, grades and traps; return whether its grader tells right from wrong.

    `data` holds NAME=PATH pairs of local records. Raises `ConfigError` for a pair or file that cannot be used, and
    `TaskError` for a task that cannot be loaded or graded.
    """
    task = _find(name, include, data)
    if task.generates:
        check_stated_generation(task)
    # No model is given, so prompts are shown in ChatML.
    tried = try_task(task, Renderer(byte_tokenizer(), Chat(template="chatml")))
    passed = [_show(console, task, split, grades) for split, grades in tried.items()]
    console.say(describe_items(task), wrap=True)
    found = list(traps(task))
    for trap in found:
        console.print(f"[yellow]trap:[/] {escape(trap)}", highlight=False)
    console.print(
        f"{name}: grader {'passes' if all(passed) else 'FAILS'}, {len(found)} trap{'s' * (len(found) != 1)}",
        highlight=False,
    )
    return all(passed)


def _find(name: str, include: Sequence[Path], data: Sequence[str]) -> Task:
    paths: dict[str, str] = {key: path for key, _, path in (pair.partition("=") for pair in data)}
    if bare := [pair for pair in data if not all(pair.partition("="))]:
        raise ConfigError(f"--data {bare[0]}: expected NAME=PATH, for example gsm8k=/data/gsm8k")
    if missing := [path for path in paths.values() if not Path(path).exists()]:
        raise ConfigError(f"--data: {', '.join(missing)} does not exist; expected NAME=PATH")
    if not name.endswith(".yaml"):
        return TaskLibrary(include, paths).load(name)
    task_name = read_task_file(Path(name)).get("task") if Path(name).is_file() else None
    if not isinstance(task_name, str):
        raise ConfigError(f"{name} is not a task file; expected an existing YAML file with a `task:` name")
    return TaskLibrary([*include, Path(name).resolve().parent], paths).load(task_name)


def _show(console: SafeConsole, task: Task, split: str, grades: GradeCheck) -> bool:
    body = f"{escape(grades.prompt)}[bold green]{escape(grades.target)}[/]"
    console.print(Panel(body, title=f"{task.name}: {split} prompt and reference, in ChatML", title_align="left"))
    spoiled = ", ".join(f"{name} {score:g}" for name, score in grades.spoiled.items())
    console.print(f"{task.metric}: reference {grades.reference:g} (must be 1); spoiled: {spoiled} (must be 0)")
    return grades.passed
