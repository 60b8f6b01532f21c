"""Estimate what a suite's runs need (memory, tokens, operations, disk), as tables, and find settings with which they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from rich.table import Table

from harness.adapter import Requirements, trainer_of
from harness.config.models import Pretrained, Scratch
from harness.config.run_spec import PlannedStage, RunSpec, averages_micro_batches
from harness.config.training import Training
from harness.engines.backend import backend_of
from harness.evaluation.groups import EvaluationPlan
from harness.lm.chat import Renderer
from harness.lmeval.task import Task
from harness.pipeline.needs.evaluation_estimate import CellRequests, count_requests, evaluation_needs
from harness.pipeline.needs.memory_estimate import (
    BYTES,
    ModelShape,
    StageNeeds,
    checkpoint_bytes,
    shape_of,
    stage_needs,
)
from harness.pipeline.processes.devices import resolve_device
from harness.rundir.retention import SNAPSHOT_SIZE, snapshots_at_once
from harness.terminal.byte_sizes import GIB, show_bytes

ASSUMED_PROMPT = 512  # tokens, where there is no tokenizer to measure with
FEWEST_TOKENS = 1024  # tokens of the smallest micro-batch that is suggested
SAMPLED_PROMPTS = 200  # training prompts of a task that are measured
LIBRARIES = 1.0 * GIB  # memory of a process without models: Python, torch, transformers, lm-eval, the tasks' records


@dataclass(frozen=True)
class RunEstimate:
    """One run's needs by stage, and those of one evaluation; `asked` is what that asks, by cell.

    `measured_prompts` says whether prompts were measured or `ASSUMED_PROMPT` long.
    """

    spec: RunSpec
    student: ModelShape
    stages: tuple[tuple[PlannedStage, StageNeeds], ...]
    evaluation: StageNeeds
    asked: Mapping[str, CellRequests]
    measured_prompts: bool

    @property
    def peak(self) -> int:
        """The most bytes of memory at one time, in training or evaluation."""
        return max(self.largest.peak, self.evaluation.peak)

    @property
    def evaluations(self) -> int:
        """How often the run evaluates all cells: at the start and after each stage."""
        return len(self.stages) + 1

    @property
    def largest(self) -> StageNeeds:
        """The needs of the stage with the highest peak of memory."""
        return max((needs for _, needs in self.stages), key=lambda needs: needs.peak)

    @property
    def disk(self) -> int:
        """The most bytes on disk at one time: kept checkpoints, and snapshots with the weights and AdamW's two states."""
        size = checkpoint_bytes(self.student)
        snapshot = SNAPSHOT_SIZE * size * snapshots_at_once(self.spec.suite) if self.spec.kind != "none" else 0
        keep = self.spec.suite.checkpoints
        kept = sum(keep.holds(stage.name) for stage, _ in self.stages)
        # A checkpoint that is not kept is removed once the next one is written.
        at_once = len(self.stages) if keep.keep == "all" else min(len(self.stages), kept + 2)
        return at_once * size + snapshot


def estimate_run(spec: RunSpec, evaluated: EvaluationPlan, renderer: Renderer | None) -> RunEstimate | str:
    """Return a run's needs, or the reason why they are not known; the budgets of `spec` must be in steps."""
    student = shape_of(spec.suite.student)
    if student is None:
        return (
            f"the size of {getattr(spec.suite.student, 'path', 'the student')} is unknown: its config.json is not here"
        )
    prompts = {stage.name: _longest_prompt(stage, evaluated.tasks, renderer) for stage in spec.stages}
    stages = tuple((stage, _needs(spec, stage, student, prompts[stage.name], {})) for stage in spec.stages)
    limit = spec.suite.evaluation.limit
    asked = {name: count_requests(task, renderer, limit, ASSUMED_PROMPT) for name, task in evaluated.cells.items()}
    evaluation = _evaluation(spec, asked, student, spec.suite.evaluation.batch_size)
    return RunEstimate(spec, student, stages, evaluation, asked, renderer is not None)


def make_fit(estimate: RunEstimate, available: float, tasks: Mapping[str, Task], renderer: Renderer | None) -> str:
    """Return a sentence with settings under which a run that does not fit `available` bytes does, or that none are known."""
    spec, stage = estimate.spec, max(estimate.stages, key=lambda each: each[1].peak)[0]
    prompt, smaller = _longest_prompt(stage, tasks, renderer), dict[str, Any]()
    batch, needed = spec.suite.evaluation.batch_size, float(estimate.evaluation.peak)
    while needed > available and batch > 1:
        batch //= 2
        smaller["evaluation.batch_size"] = batch
        needed = float(_evaluation(spec, estimate.asked, estimate.student, batch).peak)
    changes = dict[str, Any]()
    fixed = {"training.micro_batch"} if averages_micro_batches(spec.config()) else set[str]()
    for name, value in ((None, None), *_ladder(stage.training, stage.teacher)):
        if name in fixed:
            continue
        changes |= {} if name is None else {name: value}
        settings = " ".join(f"--set {name}={value}" for name, value in (changes | smaller).items())
        if settings and _needs(spec, stage, estimate.student, prompt, changes).peak <= available >= needed:
            return f"it fits with {settings}"
    held = sum(estimate.largest.memory[part] for part in ("weights", "gradients", "optimiser"))
    return (
        f"no batch size makes it fit: weights, gradients and optimiser alone take {show_bytes(held)}; take a smaller "
        "student, the adapter lora, or a teacher of another process (kind: server)"
    )


def needs_table(estimates: Sequence[RunEstimate]) -> Table:
    """Return a table of the needs of one run of each entry: tokens and operations of training, the highest peak of memory."""
    table = Table(title="training of one run needs, at most (estimated)")
    for name in ("entry", "stages"):
        table.add_column(name)
    for name in ("steps", "response tokens", "PFLOP", "memory", "disk"):
        table.add_column(name, justify="right")
    for estimate in estimates:
        needs = [needs for _, needs in estimate.stages]
        control = estimate.spec.kind == "none"
        steps = [stage.training.steps for stage, _ in estimate.stages if stage.own_adapter or not control]
        cells = (
            f"{sum(steps):,}",
            f"{sum(each.tokens for each in needs):,}",
            _petaflop(sum(each.flops for each in needs)),
            show_bytes(estimate.peak),
            show_bytes(estimate.disk),
        )
        table.add_row(estimate.spec.entry, str(len(estimate.stages)), *cells)
    return table


def stages_table(estimate: RunEstimate, seconds: Mapping[str, float], gpus: int) -> Table:
    """Return a table of each stage's needs, and of those of one evaluation.

    `seconds` of training by stage are empty without a probe; `gpus` is the number of GPUs that they were measured on.
    """
    table = Table("stage", title=f"stages of a run of {estimate.spec.entry}")
    hours = ["hours of training", *(["GPU-hours"] if gpus else [])] if seconds else []
    for name in ("steps", "response tokens", "PFLOP", "memory", *hours):
        table.add_column(name, justify="right")
    for stage, needs in estimate.stages:
        measured = [f"{seconds.get(stage.name, 0.0) / 3600 * times:.3g}" for times in (1, gpus)][: len(hours)]
        work = (f"{stage.training.steps:,}", f"{needs.tokens:,}", _petaflop(needs.flops), show_bytes(needs.peak))
        table.add_row(stage.name, *work, *measured)
    each = estimate.evaluation
    work = (f"{each.tokens:,}", _petaflop(each.flops), show_bytes(each.peak))
    table.add_row(f"an evaluation, of {estimate.evaluations}", "", *work, *[""] * len(hours))
    return table


def parts_table(estimate: RunEstimate) -> Table:
    """Return a table of memory by part, in the largest stage and in an evaluation."""
    stage, needs = max(estimate.stages, key=lambda each: each[1].peak)
    several = estimate.spec.suite.parallel.processes
    table = Table("part", title="memory" + (f" of each of {several} processes" if several > 1 else ""))
    for name in (f"stage {stage.name}", "an evaluation"):
        table.add_column(name, justify="right")
    memory = [needs.memory, estimate.evaluation.memory]
    for name in dict.fromkeys(name for parts in memory for name in parts):
        if any(parts.get(name) for parts in memory):
            table.add_row(name, *(show_bytes(parts[name]) if parts.get(name) else "" for parts in memory))
    table.add_row("at one time, at most", show_bytes(needs.peak), show_bytes(estimate.evaluation.peak))
    return table


def available_memory(device: str) -> tuple[float, str]:
    """Return the bytes that a run's tensors may take on a device, and whose they are: `the GPU` or `this machine`."""
    if resolve_device(device).startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(torch.device(resolve_device(device)))
        return float(free), "the GPU"
    return psutil.virtual_memory().available - LIBRARIES, "this machine"


def _ladder(training: Training, teacher: Any) -> Iterator[tuple[str, Any]]:
    """Yield settings that save memory, first those that do not change a run's numbers."""
    tokens, size = (
        training.tokens_per_batch,
        training.micro_batch or training.prompts_per_step * training.num_generations,
    )
    while tokens is not None and tokens > FEWEST_TOKENS:
        tokens //= 2
        yield "training.tokens_per_batch", tokens
    while tokens is None and size > 1:
        size //= 2
        yield "training.micro_batch", size
    if not training.activation_checkpointing:
        yield "training.activation_checkpointing", True
    if isinstance(teacher, Pretrained) and teacher.dtype == "float32":
        yield "teacher.dtype", "bfloat16"
    if training.precision == "float32":
        yield "training.precision", "autocast"
    batch = training.generation_batch
    while batch > 1:
        batch //= 2
        yield "training.generation_batch", batch


def _needs(
    spec: RunSpec, stage: PlannedStage, student: ModelShape, prompt: int, changes: Mapping[str, Any]
) -> StageNeeds:
    own = {name.removeprefix("training."): value for name, value in changes.items() if name.startswith("training.")}
    training = Training.model_validate({**stage.training.model_dump(), **own})
    trainer = trainer_of(spec, stage)
    needs: Requirements = trainer.requirements
    here = stage.teacher if isinstance(stage.teacher, Pretrained | Scratch) else None
    return stage_needs(
        training,
        needs,
        student,
        shape_of(here) if here is not None and needs.teacher != "none" else None,
        prompt=prompt,
        trains=(stage.adapter.adapter or spec.entry) != "none",
        teacher_dtype=changes.get("teacher.dtype", here.dtype if here is not None else "float32"),
        device=resolve_device(spec.suite.device),
        processes=spec.suite.parallel.processes,
        # A stage on the data's references draws no responses.
        generates=backend_of(spec.suite).in_process and trainer.capabilities.trains_on != {"data"},
    )


def _evaluation(spec: RunSpec, asked: Mapping[str, CellRequests], student: ModelShape, batch: int) -> StageNeeds:
    width = BYTES[spec.suite.student.dtype]
    return evaluation_needs(asked, student, batch, width, backend_of(spec.suite).in_process)


def _petaflop(flops: float) -> str:
    return f"{flops / 1e15:,.2g}"


def _longest_prompt(stage: PlannedStage, tasks: Mapping[str, Task], renderer: Renderer | None) -> int:
    if renderer is None:
        return ASSUMED_PROMPT
    limit = min(stage.training.train_items or SAMPLED_PROMPTS, SAMPLED_PROMPTS)
    return max(renderer.longest_prompt(tasks[name].training_prompts(renderer, limit)) for name in stage.trains)
