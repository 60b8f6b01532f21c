"""A command of the user as a training method: it reads a checkpoint and writes one.

options: {command: ["{python}", train.py, --from, "{checkpoint}", --to, "{output}", --prompts, "{prompts}"]}

The command runs without a shell, in the folder where the harness was started. Its inputs, its step log and its output are in
`external/` of the stage's folder. An interrupted stage runs it again. It ends with the harness, even when that is killed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from adapters.loop.prompts import prompt_batches
from harness.adapter import Adapter, Capabilities, Requirements, Source, StageContext, StageResult
from harness.config.training import Training
from harness.errors import ConfigError
from harness.lm.rollouts import Example

PLACEHOLDERS = ("python", "checkpoint", "output", "prompts", "config", "seed", "teacher", "steps")


class External(Adapter):
    """Run a command that reads {checkpoint} and writes a checkpoint of the same architecture and vocabulary to {output}.

    {prompts} is a JSON-lines file with the prompts of all steps, {config} a JSON file with the stage's budget, {seed} a number
    below 2^31, {teacher} the teacher's checkpoint, {python} this interpreter. JSON lines of numbers that the command appends
    to {steps} become the step log.
    """

    formula: ClassVar[str] = "the command's own"

    command: tuple[str, ...] = Field(min_length=1, description="program and arguments, with placeholders in braces")
    trains_on: tuple[Source, ...] = Field(
        default=("data",), min_length=1, description="whose responses the command trains on, for reports"
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
                f"the program is named by {{{late[0]}}}, which does not exist yet; name a program, or {{python}}"
            )
        if "output" not in named:
            raise ValueError("the command has no {output}, the folder to write its checkpoint to; add it")
        return command

    @property
    def requirements(self) -> Requirements:
        """A teacher with its whole distribution, where the command names {teacher}."""
        return Requirements("full" if any("{teacher}" in part for part in self.command) else "none")

    @property
    def capabilities(self) -> Capabilities:
        """It trains on `trains_on`, and needs whole weights, because the command reads and writes a checkpoint."""
        return Capabilities(frozenset(self.trains_on), needs_whole_weights=True)

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for a program that does not exist."""
        program = _fill(self.command[0], {"python": sys.executable})
        if shutil.which(program) is None:
            raise ConfigError(
                f"the command starts with {program!r}, which is not found or not executable from {Path.cwd()}; install it, "
                "or give its path"
            )

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Run the command and load the weights that it writes.

        Raises `TrainingError` when the command fails or its checkpoint does not fit the student, which is then unchanged.
        """
        from adapters.trainers.external_process import free_device, run_command  # these import transformers
        from adapters.trainers.external_results import ReturnedSteps, load_result

        folder = ctx.folder.absolute() / "external"
        paths = self._write_inputs(ctx, folder)
        output = Path(paths["output"])
        command = [_fill(part, paths) for part in self.command]
        with free_device(ctx):
            run_command(command, folder / "output.log", ReturnedSteps(Path(paths["steps"]), ctx).pass_on)
        load_result(ctx, output)
        for used in (folder / "checkpoint", folder / "teacher", output):
            shutil.rmtree(used, ignore_errors=True)
        return StageResult(ctx.training.steps)

    def _write_inputs(self, ctx: StageContext, folder: Path) -> dict[str, str]:
        """Write what the command reads and return the value of each placeholder."""
        from harness.lm.checkpoints import Loaded, save_checkpoint
        from harness.teachers.local import LocalTeacher

        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(Loaded(ctx.student.model, ctx.renderer), folder / "checkpoint")
        if isinstance(ctx.teacher, LocalTeacher):
            save_checkpoint(Loaded(ctx.teacher.model, ctx.renderer), folder / "teacher")
        seed = ctx.seed % 2**31
        (folder / "prompts.jsonl").write_text("".join(_lines(ctx)), encoding="utf-8")
        (folder / "config.json").write_text(_config(ctx, seed), encoding="utf-8")
        names = {"prompts": "prompts.jsonl", "config": "config.json", "steps": "steps.jsonl"}
        paths = {name: str(folder / names.get(name, name)) for name in PLACEHOLDERS}
        # The name is new in every attempt, so that the output of an earlier attempt's command is not used.
        output = str(folder / f"output-{uuid.uuid4().hex[:8]}")
        return {**paths, "output": output, "python": sys.executable, "seed": str(seed)}


def _config(ctx: StageContext, seed: int) -> str:
    facts = {"seed": seed, "device": ctx.device, "stop_ids": list(ctx.renderer.stop_ids)}
    return json.dumps({**ctx.training.model_dump(mode="json"), **facts}, indent=2)


def _lines(ctx: StageContext) -> Iterator[str]:
    for step, batch in enumerate(islice(prompt_batches(ctx), ctx.training.steps)):
        for example in batch:
            # ASCII, because many readers treat U+2028 and similar characters as the end of a line.
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


def _fill(part: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], part)
