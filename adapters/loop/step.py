"""One training step: draw responses to a batch of prompts, score them, update the student, and return the log line."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from adapters.loop.diagnostics import RolloutFigures, StepLog, first_choice
from adapters.loop.drawing import Drawing
from adapters.loop.tokens import MOST, TokenLosses, Tokens, check_losses, importance, uniform_draws
from harness.adapter import StageContext
from harness.lm.logprobs import LogProbs, StudentRequest, TeacherRequest, TeacherScores, head_of
from harness.lm.optimiser import Updater, UpdateResult
from harness.lm.packing import packs
from harness.lm.precision import autocast
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Batch, Example, Rollout, make_batches, with_prompts
from harness.lm.trained.weights import Trainable
from harness.rundir.process.session import Timer
from harness.teachers.local import LocalTeacher
from harness.teachers.score_checks import check_scores, refuse_certainty, refuse_unknown_ids, unchecked_scores
from harness.teachers.teacher import Teacher, with_diagnostics

if TYPE_CHECKING:
    from adapters.loop.training_loop import LoopAdapter


Scores = Callable[[], TeacherScores]


@dataclass(frozen=True)
class PendingScores:
    """A micro-batch whose scores are under way: calling `teacher` or `reference` checks and returns them."""

    batch: Batch
    teacher: Scores
    reference: Scores | None


@dataclass(frozen=True)
class ScoredRollouts:
    """A micro-batch with all that its updates do not change.

    `ids` (N, 1 + K) are the sampled tokens and the teacher's top K; `logref`, `logq_old` and `uniform` are (N,), see `Tokens`.
    """

    batch: Batch
    ids: Tensor
    teacher: TeacherScores
    logref: Tensor | None
    logq_old: Tensor | None
    uniform: Tensor | None = None


class Step:
    """One step of a stage: a batch of prompts, and the updates on the responses to them."""

    def __init__(
        self,
        adapter: LoopAdapter,
        ctx: StageContext,
        weights: Trainable,
        updater: Updater,
        drawing: Drawing,
        index: int,
    ) -> None:
        self.adapter, self.ctx, self.updater, self.index = adapter, ctx, updater, index
        self.weights, self.student, self.ranks = weights, weights.module, current_ranks()
        self.drawing = drawing
        self.scorer = adapter.scorer(ctx)
        self.figures = RolloutFigures()
        self.vocabulary = len(head_of(ctx.student.model).weight)
        self.timer = Timer("generate", "teacher", "student", whole="step", device=ctx.device)

    def run(self, prompts: list[Example], following: list[Example] | None = None) -> dict[str, Any]:
        """Do the step and return its line of the step log; `following` are the next step's prompts, None at the end."""
        with self.timer("generate"):
            rollouts = self.adapter.credit(self.ctx, self.drawing.take(self.index, prompts))
            if following is not None:
                self.drawing.draw_ahead(self.index + 1, following)
        refuse_unknown_ids(rollouts, self.vocabulary)
        _set_mode(self.student, self.adapter.disable_dropout)
        log = StepLog(rollouts, self.adapter.teacher_request.top_k)
        groups = _split(rollouts, self.adapter.updates_per_rollout)
        # The teacher scores on the device while the next micro-batches are prepared; only `_check` waits for its scores.
        asked = [[self._ask(batch) for batch in self._batches(group)] for group in groups]
        scored = [[self._check(each) for each in group] for group in asked]
        every = [s for group in scored for s in group if not s.batch.filler]
        log.batches([s.batch for s in every])
        if self.scorer is not None:
            refuse_certainty(self._of_all([(s.batch, s.teacher.sampled) for s in every]))
        if references := self._of_all([(s.batch, s.logref) for s in every if s.logref is not None]):
            refuse_certainty(references)
        for group in scored:
            with self.timer("student"):
                log.update(self._update(group, log))
        figures = self.ranks.gather([self.figures.of(rollout) for rollout in rollouts])
        self.ctx.keep(
            self.index,
            self.drawing.source(self.index),
            rollouts,
            [dict(ChainMap(*parts)) for parts in zip(*figures, strict=True)],
        )
        return {"step": self.index, **log.summary(), "seconds": self.timer.seconds}

    def _of_all(self, parts: list[tuple[Batch, Tensor]]) -> list[tuple[Batch, Tensor]]:
        """Return the parts of all processes, on the CPU and without tokens where there are several."""
        if self.ranks.size == 1:
            return parts
        none = torch.empty(0)
        light = [(Batch(none, none, none, none, none, batch.rollouts), scores.cpu()) for batch, scores in parts]
        return [part for found in self.ranks.gather(light) for part in found]

    def _batches(self, rollouts: Sequence[Rollout]) -> list[Batch]:
        training, packed = self.ctx.training, self.ctx.training.packs and packs(self.ctx.student.model)
        limits = training.micro_batch, self.ctx.device, training.tokens_per_batch, packed
        return make_batches(rollouts, self.adapter.reduction, *limits, self.ranks)

    def _ask(self, batch: Batch) -> PendingScores:
        """Start scoring a micro-batch with teacher and reference; a model on a device may still compute afterwards."""
        with self.timer("teacher"):
            return PendingScores(batch, self._teacher_scores(batch), self._log_reference(batch))

    def _check(self, asked: PendingScores) -> ScoredRollouts:
        """Wait for the scores and check them; where several updates share the batch, also score it with the student."""
        batch, teacher = asked.batch, asked.teacher()
        logref = None if asked.reference is None else asked.reference().sampled
        ids = torch.cat([batch.targets[:, None], teacher.top_ids], dim=1)
        uniform = None
        if self.adapter.draws_uniform:
            uniform = uniform_draws(self.ctx.seed, self.index, batch.rollouts).to(batch.targets.device)
        if self.adapter.updates_per_rollout == 1:
            return ScoredRollouts(batch, ids, teacher, logref, None, uniform)
        with self.timer("student"), torch.no_grad():
            old = self._student(batch, batch.targets[:, None]).chosen[:, 0]
        return ScoredRollouts(batch, ids, teacher, logref, old, uniform)

    def _teacher_scores(self, batch: Batch) -> Scores:
        if self.scorer is None:
            nothing = torch.zeros(len(batch.targets), 0, device=batch.targets.device)
            none = TeacherScores(nothing.new_full((len(batch.targets),), float("nan")), nothing.long(), nothing)
            return lambda: none
        prompts = self.adapter.teacher_prompts(self.ctx, batch.rollouts)
        seen = batch if prompts is None else with_prompts(batch, prompts)
        return self._scores(self.scorer, seen, with_diagnostics(self.adapter.teacher_request, self.scorer))

    def _log_reference(self, batch: Batch) -> Scores | None:
        if not (self.adapter.scores_start or self.ctx.penalties.token):
            return None
        assert self.ctx.reference is not None, "the adapter did not require a reference"
        return self._scores(self.ctx.reference, batch, TeacherRequest())

    def _scores(self, teacher: Teacher, batch: Batch, request: TeacherRequest) -> Scores:
        if not (isinstance(teacher, LocalTeacher) and packs(teacher.model)):
            batch = batch.padded()
        with autocast(self.ctx.device, self.ctx.training.scoring_autocast):
            found = unchecked_scores(teacher, batch, request, self.adapter.temperature(self.ctx.training))
        if not isinstance(teacher, LocalTeacher):
            # At once, before a faulty server is asked again.
            checked = check_scores(found, batch, request, self.vocabulary)
            return lambda: checked
        return lambda: check_scores(found, batch, request, self.vocabulary)

    def _student(self, batch: Batch, ids: Tensor, teacher: TeacherScores | None = None) -> LogProbs:
        temperature = self.adapter.temperature(self.ctx.training)
        asked = StudentRequest(temperature)
        if teacher is not None and self.scorer is not None:
            held = slice(1, None) if self.adapter.teacher_request.rest else None
            rows, own_top = teacher.rows, teacher.top_ids.shape[1]
            asked = StudentRequest(temperature, self.adapter.divergence, rows, own_top, held, self.adapter.closed_form)
        with autocast(self.ctx.device, self.ctx.training.autocast):
            return self.student(batch, ids, asked)

    def _update(self, group: list[ScoredRollouts], log: StepLog) -> UpdateResult:
        penalties = [partial(penalty, self.student) for penalty in self.ctx.penalties.weight]
        result = self.updater.update([scored.batch for scored in group], self._loss(group, log), penalties)
        self.weights.publish()
        if self.adapter.follows_updates:
            with self.weights.whole():
                self.adapter.after_update(self.ctx)
        return result

    def _loss(self, group: list[ScoredRollouts], log: StepLog) -> Callable[[Batch], Tensor]:
        by_batch = {id(scored.batch): scored for scored in group}

        def loss_of(batch: Batch) -> Tensor:
            scored = by_batch[id(batch)]
            student = self._student(batch, scored.ids, scored.teacher)
            if batch.filler:
                return student.chosen.sum() * 0.0
            tokens = _tokens(student, scored, self.adapter.teacher_request.top_k)
            outcome = check_losses(self.adapter.token_losses(tokens), len(tokens.logq), type(self.adapter).__name__)
            if self.scorer is not None:
                log.against_teacher(student, scored.ids, scored.teacher, tokens.advantage, outcome, batch.weights)
            log.tokens(student, outcome.routed)
            log.against_engine(tokens.logq_old, batch)
            ratio = importance(tokens.logq_old, batch)
            log.importance(ratio)
            self.figures.add(batch.rollouts, self._token_figures(student, scored, tokens, outcome, ratio))
            return (self._weighed(outcome.losses, tokens, ratio) * batch.weights).sum()

        return loss_of

    def _token_figures(
        self, student: LogProbs, scored: ScoredRollouts, tokens: Tokens, outcome: TokenLosses, ratio: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return each token's figures (N,) under the names of `harness.rundir.training.rollout_log`."""
        taught = self.scorer is not None
        return {
            "student_logprob": tokens.logq_old,
            "entropy": student.entropy,
            "teacher_logprob": tokens.logp if taught else None,
            "advantage": tokens.advantage if taught else None,
            "teacher_top1": first_choice(scored.ids) if taught else None,
            "routed_fkl": outcome.routed,
            "importance": ratio,
        }

    def _weighed(self, losses: Tensor, tokens: Tokens, ratio: Tensor | None) -> Tensor:
        """Return the losses (N,) plus the penalties, multiplied by the importance weights of tokens that were drawn ahead.

        Weights are capped at MOST, so that one token cannot dominate a step. A loss that does not depend on which token was
        drawn at its position needs no weight.
        """
        weights = None if ratio is None else ratio.clamp(max=MOST)
        if weights is not None and self.adapter.depends_on_draw:
            losses = weights * losses
        for penalty in self.ctx.penalties.token:
            assert tokens.logref is not None
            added = penalty(tokens.logq, tokens.logref)
            losses = losses + (added if weights is None else weights * added)
        return losses


def _set_mode(student: nn.Module, disable_dropout: bool) -> None:
    """Put the student into training or evaluation mode; the dropout that the adapter `lora` adds is always on.

    It is called after the rollouts of every step, because an engine sets the mode too.
    """
    student.train(not disable_dropout)
    for name in cast("list[str]", [name for name, _ in student.named_modules()]):  # pyright: ignore[reportUnknownVariableType]
        if "lora_dropout" in name:
            student.get_submodule(name).train()


def _tokens(student: LogProbs, scored: ScoredRollouts, top_k: int) -> Tokens:
    logq = student.chosen[:, 0]
    return Tokens(
        logq=logq,
        logq_old=logq.detach() if scored.logq_old is None else scored.logq_old,
        logp=scored.teacher.sampled,
        top_logq=student.chosen[:, 1 : 1 + top_k],
        top_logp=scored.teacher.top_logprobs[:, :top_k],
        entropy_p=scored.teacher.entropy,
        divergence=student.divergence,
        logref=scored.logref,
        credit=scored.batch.credit,
        rest_logq=student.rest,
        uniform=scored.uniform,
    )


def _split(rollouts: list[Rollout], parts: int) -> list[list[Rollout]]:
    size = -(-len(rollouts) // parts)
    return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
