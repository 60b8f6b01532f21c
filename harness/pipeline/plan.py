"""The dry run: a suite resolved, its stages, the work ahead, and the checks of tasks and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.adapter import make_adapter
from harness.config.models import Chat, Model, Pretrained
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, HarnessError
from harness.evaluation.groups import EvaluationPlan, load_evaluation_plan
from harness.lm.chat import Renderer
from harness.lm.checkpoints import allow_own_code, context_of, load_renderer
from harness.lmeval.checks import check_stage_task, check_test_prompts, check_training_prompts
from harness.lmeval.library import TaskLibrary
from harness.lmeval.overlap import stream_overlap
from harness.lmeval.task import Task
from harness.lmeval.trial import describe_items, item_warnings, try_task
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer, train_tokenizer, training_texts
from harness.pipeline.resources import refuse_teachers
from harness.rundir.overlap_record import OVERLAP_HEADER, Overlap


def print_plan(console: Console, specs: Sequence[RunSpec]) -> None:
    """Print the resolved suite, the stages, the work ahead and the checks of tasks and prompts; write nothing."""
    suite = specs[0].suite
    allow_own_code(suite.trust_remote_code)
    console.print(yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, allow_unicode=True), markup=False)
    library = TaskLibrary(suite.include, suite.data)
    evaluated = load_evaluation_plan(library, suite)
    cells, tasks = evaluated.cells, evaluated.tasks
    for name in specs[0].trained:
        check_stage_task(tasks[name])
    console.print(_stage_table(specs[0], evaluated))
    console.print(_work_table(specs, cells))
    for task in tasks.values():
        _print_items(console, suite, task)
    entries = {spec.entry: spec for spec in specs}
    for entry, spec in entries.items():
        refuse_teachers(spec, make_adapter(entry, suite.adapters[entry]))
        console.print(f"prompts under {entry}: {_fits(spec, evaluated, library)}", markup=False, highlight=False)
    overlaps: list[Overlap] = []
    for spec in entries.values():
        overlap = stream_overlap(spec, tasks, library)
        if overlap not in overlaps:
            overlaps.append(overlap)
            _print_overlap(console, overlap)
    folders = ", ".join(str(spec.path) for spec in specs)
    console.print(f"run directories: {folders}", markup=False, highlight=False, soft_wrap=True)
    console.print("dry run: nothing was written")


def _stage_table(spec: RunSpec, evaluated: EvaluationPlan) -> Table:
    tasks = evaluated.tasks
    table = Table(title=f"stages of {spec.suite.name}, order {spec.order}")
    for column in ("stage", "task", "training items", "steps", "rollouts a step", "learning rate", "test items"):
        name = column == "task"  # a name that is cut is no use; the other headers fold
        table.add_column(column, justify="left" if name else "right", no_wrap=name)
    for stage in spec.stages:
        training = stage.training
        items = sum(len(tasks[name].training_docs(training.train_items)) for name in stage.trains)
        tests = sum(_test_items(spec.suite, tasks[name]) for name in stage.trains)
        rollouts = training.prompts_per_step * training.num_generations
        cells = (
            stage.index,
            ", ".join(stage.trains),
            items,
            training.steps,
            rollouts,
            f"{training.optimizer.lr:g}",
            tests,
        )
        table.add_row(*map(str, cells))
    for probe in evaluated.probes:
        members = evaluated.groups[probe].tasks if probe in evaluated.groups else (probe,)
        items = sum(_test_items(spec.suite, tasks[name]) for name in members)
        table.add_row("probe", probe, "", "", "", "", str(items))
    return table


def _work_table(specs: Sequence[RunSpec], cells: dict[str, Task]) -> Table:
    """Return the estimated work of all runs; generated tokens are the most that the budgets allow."""
    suite = specs[0].suite
    budgets = [stage.training for spec in specs for stage in spec.stages]
    rollouts = sum(b.steps * b.prompts_per_step * b.num_generations for b in budgets)
    tokens = sum(b.steps * b.prompts_per_step * b.num_generations * b.max_new_tokens for b in budgets)
    stages = sum(len(spec.stages) for spec in specs)
    answers = stages * sum(_test_items(suite, task) * task.generation.get("n", 1) for task in cells.values())
    table = Table("estimated work", "", show_header=True)
    table.add_row("runs", str(len(specs)))
    table.add_row("training steps", f"{sum(b.steps for b in budgets):,}")
    table.add_row("rollouts, or references trained on", f"{rollouts:,}")
    table.add_row("response tokens, at most", f"{tokens:,}")
    kinds, what = ("task x stage x profile", "answers") if suite.evaluation.profiles else ("task x stage", "items")
    table.add_row(f"evaluations ({kinds}), the common start aside", f"{stages * len(cells):,} with {answers:,} {what}")
    return table


def _print_items(console: Console, suite: Suite, task: Task) -> None:
    """Try one item of a task; print how many items it has, which of them are independent, and what is wrong with them."""
    tried = try_task(task, Renderer(byte_tokenizer(), Chat(template="chatml")))
    facts = describe_items(task, suite.evaluation.limit)
    console.print(f"{task.name}: {facts}", markup=False, highlight=False, soft_wrap=True)
    worth = {split: grades.reference for split, grades in tried.items() if grades.reference != 1}
    graded = [f"the {split} reference is graded {score:g}, expected 1" for split, score in worth.items()]
    for warning in [*graded, *item_warnings(task, suite.evaluation.limit)]:
        console.print(f"[yellow]warning:[/] {task.name}: {escape(warning)}", highlight=False, soft_wrap=True)


def _print_overlap(console: Console, overlap: Overlap) -> None:
    if overlap.found:
        table = Table(*OVERLAP_HEADER, title="training prompts in test sets")
        for row in overlap.found:
            table.add_row(*row.cells)
        console.print(table)
    warned = "[yellow]warning:[/] " if overlap.warning else ""
    console.print(f"{warned}{escape(overlap.summary)}", highlight=False, soft_wrap=True)


def _test_items(suite: Suite, task: Task) -> int:
    return len(task.test_docs(suite.evaluation.limit))


def _fits(spec: RunSpec, evaluated: EvaluationPlan, library: TaskLibrary) -> str:
    try:
        renderer, context = _tokenizer_without_writing(spec.suite.student, evaluated.tasks, library)
    except (HarnessError, OSError) as error:
        return f"not checked, the student's tokenizer is not here ({error})"

    def longest(task: Task, limit: int | None, room: int) -> int:
        return renderer.longest_prompt(task.training_prompts(renderer, limit), room)

    check_test_prompts(evaluated.cells.values(), renderer, context, spec.suite.evaluation.limit)
    check_training_prompts(spec, evaluated.tasks, context, longest)
    return f"all fit the context of {context} tokens"


def _tokenizer_without_writing(spec: Model, tasks: dict[str, Task], library: TaskLibrary) -> tuple[Renderer, int]:
    if isinstance(spec, Pretrained):
        if not Path(spec.path).is_dir():
            raise ConfigError(f"{spec.path} is not a local folder; the run itself will download and check it")
        return load_renderer(Path(spec.path), spec), context_of(Path(spec.path))
    return Renderer(train_tokenizer(spec, training_texts(spec, library, tasks)), spec.chat), spec.architecture.context
