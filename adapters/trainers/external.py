"""A command of the user's own as a training method: a checkpoint goes in, a checkpoint comes out.

options: {command: ["{python}", train.py, --from, "{checkpoint}", --to, "{output}", --prompts, "{prompts}"]}

It runs without a shell, in the folder that the harness was started in. What it is given and all that it prints lie under
`external/` in the stage's folder. An interrupted stage runs it anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from adapters.loop.prompts import prompt_batches
from adapters.trainers.external_results import ReturnedSteps, take_up
from harness.adapter import Adapter, Capabilities, Requirements, Source, StageContext, StageResult
from harness.config.training import Training
from harness.errors import ConfigError, TrainingError
from harness.lm.checkpoints import Loaded, save
from harness.lm.rollouts import Example
from harness.teachers.local import LocalTeacher

PLACEHOLDERS = ("python", "checkpoint", "output", "prompts", "config", "seed", "teacher", "steps")
POLL_SECONDS = 1.0
# What a Python command prints must not come after the error that ended it.
IN_ORDER = {"PYTHONUNBUFFERED": "1"}


class External(Adapter):
    """Run a command that reads {checkpoint} and writes a checkpoint of the same architecture and vocabulary to {output}.

    {prompts} is a JSON-lines file, {config} a JSON file of the stage's budget, {seed} below 2^31, {teacher} the teacher's
    checkpoint, {python} this interpreter. Lines of numbers that the command appends to {steps} become the step log.
    """

    command: tuple[str, ...] = Field(min_length=1, description="program and arguments, with placeholders in braces")
    trains_on: tuple[Source, ...] = Field(
        default=("data",), min_length=1, description="whose responses the command trains on, as reports take it"
    )

    @field_validator("command")
    @classmethod
    def _placeholders_are_known(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        named = {name for part in command for name in re.findall(r"\{(\w+)\}", part)}
        if unknown := sorted(named - set(PLACEHOLDERS)):
            raise ValueError(
                f"there is no placeholder {{{unknown[0]}}}; known are {', '.join(PLACEHOLDERS)}, in braces"
            )
        if late := [name for name in re.findall(r"\{(\w+)\}", command[0]) if name != "python"]:
            raise ValueError(
                f"the program cannot be named by {{{late[0]}}}, which is not there yet; name one, or {{python}}"
            )
        if "output" not in named:
            raise ValueError("the command has no {output}, so it cannot know where to leave its checkpoint; add it")
        return command

    @property
    def requirements(self) -> Requirements:
        """The whole teacher, where the command names {teacher}."""
        return Requirements("full" if self._uses("teacher") else "none")

    @property
    def capabilities(self) -> Capabilities:
        """The command is given a whole checkpoint and returns one."""
        return Capabilities(frozenset(self.trains_on), needs_whole_weights=True)

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for a program that is not there."""
        program = _filled(self.command[0], {"python": sys.executable})
        if shutil.which(program) is None:
            raise ConfigError(
                f"the command starts with {program!r}, which is no program that can be run from {Path.cwd()}; "
                "install it, or give its path"
            )

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Run the command and take up its weights.

        Raises `TrainingError` when it fails or leaves a checkpoint that does not fit; the student is then unchanged.
        """
        folder = ctx.folder.absolute() / "external"
        given = self._hand_over(ctx, folder)
        command = [_filled(part, given) for part in self.command]
        steps = ReturnedSteps(folder / "steps.jsonl", ctx)
        with _device_free(ctx):
            _run(command, folder / "output.log", steps)
        take_up(ctx, folder / "output")
        for used in ("checkpoint", "teacher", "output"):
            shutil.rmtree(folder / used, ignore_errors=True)
        return StageResult(ctx.training.steps)

    def _uses(self, placeholder: str) -> bool:
        return any(f"{{{placeholder}}}" in part for part in self.command)

    def _hand_over(self, ctx: StageContext, folder: Path) -> dict[str, str]:
        """Write what the command reads and return what the placeholders stand for."""
        shutil.rmtree(folder, ignore_errors=True)
        save(Loaded(ctx.student.model, ctx.renderer), folder / "checkpoint")
        if isinstance(ctx.teacher, LocalTeacher):
            save(Loaded(ctx.teacher.model, ctx.renderer), folder / "teacher")
        seed = ctx.seed % 2**31
        (folder / "prompts.jsonl").write_text("".join(_lines(ctx)), encoding="utf-8")
        (folder / "config.json").write_text(_config(ctx, seed), encoding="utf-8")
        names = {"prompts": "prompts.jsonl", "config": "config.json", "steps": "steps.jsonl"}
        given = {name: str(folder / names.get(name, name)) for name in PLACEHOLDERS}
        return {**given, "python": sys.executable, "seed": str(seed)}


def _config(ctx: StageContext, seed: int) -> str:
    facts = {"seed": seed, "device": ctx.device, "stop_ids": list(ctx.renderer.stop_ids)}
    return json.dumps({**ctx.training.model_dump(mode="json"), **facts}, indent=2)


def _lines(ctx: StageContext) -> Iterator[str]:
    for step, batch in enumerate(islice(prompt_batches(ctx), ctx.training.steps)):
        for example in batch:
            # ASCII: many readers take U+2028 and its like for the end of a line.
            yield json.dumps(_line(ctx, step, example)) + "\n"


def _line(ctx: StageContext, step: int, example: Example) -> dict[str, Any]:
    decode = ctx.renderer.tokenizer.decode
    return {
        "step": step,
        "task": example.task,
        "item_id": example.item_id,
        "prompt": decode(example.prompt),
        "target": decode(example.target[:-1]),
        "prompt_ids": example.prompt,
        "target_ids": example.target,
    }


def _filled(part: str, given: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: given[found[1]], part)


@contextmanager
def _device_free(ctx: StageContext) -> Generator[None]:
    """Leave the accelerator to the command."""
    models: list[Any] = [ctx.student.model, *([ctx.teacher.model] if isinstance(ctx.teacher, LocalTeacher) else [])]
    for model in models:
        model.cpu()
    if ctx.device != "cpu":
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for model in models:
            model.to(ctx.device)


def _run(command: list[str], log: Path, steps: ReturnedSteps) -> None:
    process = _started(command, log)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            steps.pass_on()
    finally:
        if process.poll() is None:
            _end(process)
    steps.pass_on(whole=True)
    if code := process.returncode:
        how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(
            f"the command {_short(command)} {how} and said last: {_last_line(log)!r}; read all in {log}"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started: workers of a distributed trainer would keep the accelerator."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=IN_ORDER | os.environ,
                start_new_session=True,
            )
    except OSError as error:
        raise TrainingError(f"the command {_short(command)} cannot be started: {error}; mend its program") from error


def _short(command: list[str]) -> str:
    return textwrap.shorten(shlex.join(command), 120, placeholder=" ...")


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**16))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""
