"""The training loop that the methods share: prompts, responses, teacher scores, loss, step.

An adapter states where responses come from (`on_policy`), what it needs of the teacher and a loss per token; batching,
normalisation, accumulation, timing and the step log are the loop's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.diagnostics import StepLog
from adapters.tokens import TokenLosses, Tokens
from harness.adapter import Adapter, StageContext, StageResult
from harness.config import Training
from harness.engines.base import Sampling
from harness.errors import ConfigError, TaskError
from harness.logprobs import LogProbs, TeacherScores, Wanted
from harness.precision import autocast
from harness.rollouts import Batch, Example, Reduction, Rollout, make_batches
from harness.seeding import derive_seed, permutation
from harness.teachers.base import Teacher
from harness.timing import Timer
from harness.training import Updater

Source = Literal["student", "data", "teacher"]


class LoopAdapter(Adapter):
    """Base of the methods that differ in their loss per token alone."""

    on_policy: ClassVar[bool] = True

    reduction: Reduction = Field(default="sequence_mean", description="1/|y| per sequence, or the mean over all tokens")
    updates_per_rollout: int = Field(default=1, gt=0, description="optimiser steps that share one batch of rollouts")

    @property
    def wanted(self) -> Wanted:
        """What the loss uses of the teacher beside the sampled token's log-probability."""
        return Wanted()

    @abstractmethod
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each response token; averaging is the loop's."""

    @property
    def scored(self) -> bool:
        """Whether the teacher scores the responses."""
        return self.teacher_needs in ("sampled", "top_k", "full")

    def temperature(self, training: Training) -> float:
        """Return the temperature of both sides' log-probabilities: plain likelihood is taught at 1."""
        return training.temperature if self.on_policy or self.scored else 1.0

    def divergence(self, logq: Tensor, logp: Tensor) -> Tensor:
        """Return a loss (n,) over the whole vocabulary from log-probabilities (n, V); needs `wanted.vocabulary`."""
        raise NotImplementedError

    def source(self, seed: int) -> Source:
        """Return where a step's responses come from; `seed` is the step's own."""
        return "student" if self.on_policy else "data"

    def credit(self, ctx: StageContext, rollouts: list[Rollout]) -> list[Rollout]:
        """Return the rollouts with what each is worth; without rewards nothing is."""
        return rollouts

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Run the stage's budget of rollout batches."""
        _check_budget(ctx, self.updates_per_rollout)
        updater = Updater(ctx.student, ctx.training.optimizer, ctx.training.steps * self.updates_per_rollout)
        ctx.student.train()
        for step, prompts in enumerate(islice(prompt_batches(ctx), ctx.training.steps)):
            _Step(self, ctx, updater, step).run(prompts)
        return StageResult(ctx.training.steps)


@dataclass(frozen=True)
class _Scored:
    """A micro-batch with what does not change while its updates run."""

    batch: Batch
    ids: Tensor
    teacher: TeacherScores
    logref: Tensor | None
    logq_old: Tensor | None


class _Step:
    """One batch of prompts: respond, score, update, log."""

    def __init__(self, adapter: LoopAdapter, ctx: StageContext, updater: Updater, step: int) -> None:
        self.adapter, self.ctx, self.updater, self.step = adapter, ctx, updater, step
        self.timer = Timer("generate", "teacher", "student", whole="step")

    def run(self, prompts: list[Example]) -> None:
        """Do the step and write its line to the step log."""
        with self.timer("generate"):
            rollouts = self.adapter.credit(self.ctx, self._respond(prompts))
        log = StepLog(rollouts)
        groups = _split(rollouts, self.adapter.updates_per_rollout)
        scored = [[self._score(batch) for batch in self._batches(group)] for group in groups]
        for group in scored:
            with self.timer("student"):
                result = self.updater.update(_batches_of(group), self._loss(group, log))
            log.update(result)
        self.ctx.log({"step": self.step, **log.summary(), "seconds": self.timer.seconds})

    def _respond(self, prompts: list[Example]) -> list[Rollout]:
        source = self.adapter.source(derive_seed(self.ctx.seed, "source", self.step))
        if source == "data":
            limit = self.ctx.training.max_new_tokens
            return [Rollout(e, e.target[:limit], "stop" if len(e.target) <= limit else "length") for e in prompts]
        sampling = Sampling(
            max_new_tokens=self.ctx.training.max_new_tokens,
            temperature=self.ctx.training.temperature,
            stop_ids=self.ctx.renderer.stop_ids,
            seed=derive_seed(self.ctx.seed, "rollouts", self.step),
        )
        repeated = [example for example in prompts for _ in range(self.ctx.training.num_generations)]
        engine = self.ctx.engine if source == "student" else self.ctx.teacher_engine
        assert engine is not None, "a suite whose teacher cannot generate was not refused"
        completions = engine.generate([example.prompt for example in repeated], sampling)
        return [Rollout(e, c.tokens, c.finish) for e, c in zip(repeated, completions, strict=True)]

    def _batches(self, rollouts: Sequence[Rollout]) -> list[Batch]:
        return make_batches(rollouts, self.adapter.reduction, self.ctx.training.micro_batch, self.ctx.device)

    def _score(self, batch: Batch) -> _Scored:
        with self.timer("teacher"):
            teacher = self._scores(self.ctx.teacher if self.adapter.scored else None, batch, self.adapter.wanted)
            logref = self._scores(self.ctx.reference, batch, Wanted()).sampled if self.ctx.reference else None
        ids = torch.cat([batch.targets[:, None], teacher.top_ids], dim=1)
        if self.adapter.updates_per_rollout == 1:
            return _Scored(batch, ids, teacher, logref, None)
        with self.timer("student"), torch.no_grad():
            old = self._student(batch, batch.targets[:, None]).chosen[:, 0]
        return _Scored(batch, ids, teacher, logref, old)

    def _scores(self, teacher: Teacher | None, batch: Batch, wanted: Wanted) -> TeacherScores:
        if teacher is None:
            nothing = torch.zeros(len(batch.targets), 0, device=batch.targets.device)
            return TeacherScores(nothing.new_full((len(batch.targets),), float("nan")), nothing.long(), nothing)
        with autocast(self.ctx.device, self.ctx.training.autocast):
            return teacher.score(batch, wanted, self.adapter.temperature(self.ctx.training))

    def _student(self, batch: Batch, ids: Tensor, teacher: TeacherScores | None = None) -> LogProbs:
        rows = None if teacher is None else teacher.rows
        with autocast(self.ctx.device, self.ctx.training.autocast):
            return self.ctx.student(
                batch, ids, self.adapter.temperature(self.ctx.training), self.adapter.divergence, rows
            )

    def _loss(self, group: list[_Scored], log: StepLog) -> Callable[[Batch], Tensor]:
        by_batch = {id(scored.batch): scored for scored in group}

        def loss_of(batch: Batch) -> Tensor:
            scored = by_batch[id(batch)]
            student = self._student(batch, scored.ids, scored.teacher)
            tokens = _tokens(student, scored)
            outcome = self.adapter.token_losses(tokens)
            log.tokens(student, tokens.advantage if self.adapter.scored else None, outcome.routed)
            return (outcome.losses * batch.weights).sum()

        return loss_of


def prompt_batches(ctx: StageContext) -> Iterator[list[Example]]:
    """Yield batches of prompts without end, the stage's tasks in turn, so that each has an equal share."""
    in_turn = cycle([_endless(ctx, task) for task in ctx.tasks])
    while True:
        yield [next(next(in_turn)) for _ in range(ctx.training.prompts_per_step)]


def _endless(ctx: StageContext, task: str) -> Iterator[Example]:
    """Yield one task's items epoch after epoch, each in an order of its own."""
    examples = [example for example in ctx.examples if example.task == task]
    for epoch in count():
        for i in permutation(len(examples), derive_seed(ctx.seed, "data", task, epoch)):
            yield examples[i]


def _tokens(student: LogProbs, scored: _Scored) -> Tokens:
    logq = student.chosen[:, 0]
    return Tokens(
        logq=logq,
        logq_old=logq.detach() if scored.logq_old is None else scored.logq_old,
        logp=scored.teacher.sampled,
        top_logq=student.chosen[:, 1:],
        top_logp=scored.teacher.top_logprobs,
        entropy_p=scored.teacher.entropy,
        divergence=student.divergence,
        logref=scored.logref,
        credit=scored.batch.credit,
    )


def _batches_of(group: list[_Scored]) -> list[Batch]:
    return [scored.batch for scored in group]


def _split(rollouts: list[Rollout], parts: int) -> list[list[Rollout]]:
    size = -(-len(rollouts) // parts)
    return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]


def _check_budget(ctx: StageContext, updates: int) -> None:
    if empty := set(ctx.tasks) - {example.task for example in ctx.examples}:
        raise TaskError(f"task {', '.join(sorted(empty))} has no training items; a stage needs a `training_split`")
    rollouts = ctx.training.prompts_per_step * ctx.training.num_generations
    if rollouts % updates:
        raise ConfigError(f"updates_per_rollout {updates} does not divide the {rollouts} rollouts of a step")
