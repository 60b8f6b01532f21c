"""The training loop that the methods share: prompts, responses, teacher scores, loss, step.

An adapter defines where responses come from (`sources`), what its loss uses of the teacher (`teacher_request`), and the loss
of each token. The loop does the rest: batches, averages, gradient accumulation, optimiser, snapshots, guards, the step log.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adapters.loop.divergences import generalised_jsd
from adapters.loop.drawing import Drawing
from adapters.loop.guards import Guards, broken_step
from adapters.loop.prompts import prompt_batches
from adapters.loop.step import Step
from adapters.loop.tokens import TokenLosses, Tokens
from harness.adapter import Adapter, Capabilities, Requirements, Source, StageContext, StageResult
from harness.config.training import Training
from harness.errors import ConfigError, NotFiniteError, TaskError
from harness.lm.logprobs import TeacherRequest, head_of
from harness.lm.packing import packing
from harness.lm.rollouts import Reduction, Rollout
from harness.lm.trained.recompute import recomputed_layers
from harness.lm.trained.trainable import trainable
from harness.lm.trained.weights import Trainable
from harness.teachers.local import LocalTeacher, check_same_rows

if TYPE_CHECKING:
    from harness.lm.optimiser import Updater
    from harness.teachers.teacher import Teacher

Objective = Literal["forward_kl", "reverse_kl"]
REDUCTION = (
    "sequence_mean: sequences have equal weights; token_mean: tokens have equal weights; micro_batch_mean: the token mean of "
    "each micro-batch, weighted by its share of the sequences"
)


class LoopAdapter(Adapter):
    """Base of the methods that differ only in their loss per token.

    `draws_uniform`: the loss uses `tokens.uniform`. `depends_on_draw`: the loss at a position depends on which token was drawn
    there, so stale tokens need importance weights.
    """

    draws_uniform: ClassVar[bool] = False
    depends_on_draw: ClassVar[bool] = True

    reduction: Reduction = Field(default="sequence_mean", description=REDUCTION)
    updates_per_rollout: int = Field(default=1, gt=0, description="optimiser steps that share one batch of rollouts")
    disable_dropout: bool = Field(
        default=True,
        description="train without the model's dropout, so that its log-probabilities are those of the rollouts",
    )

    @property
    def requirements(self) -> Requirements:
        """What the loss needs, from `teacher_needs`, `scores_start` and `teacher_request`."""
        asked = self.teacher_request
        return Requirements(self.teacher_needs, self.scores_start, asked.top_k, asked.entropy)

    @property
    def capabilities(self) -> Capabilities:
        """It trains on responses of its `sources`; the loop adds penalties, distributes, and weights stale responses."""
        return Capabilities(frozenset(self.sources), takes_penalties=True, distributes=True, takes_stale=True)

    @property
    def teacher_request(self) -> TeacherRequest:
        """What the loss uses of the teacher in addition to the log-probability of the sampled token."""
        return TeacherRequest()

    @property
    def scores_start(self) -> bool:
        """Whether the loss uses log-probabilities under the stage's start, `tokens.logref`."""
        return False

    @property
    def objective(self) -> Objective | None:
        """The divergence whose gradient the loss has in expectation, with a top K of the whole vocabulary; None for neither.

        The conformance suite checks what an adapter declares.
        """
        return None

    @abstractmethod
    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each response token, (N,); the loop averages them."""

    def divergence(self, logq: Tensor, logp: Tensor) -> Tensor:
        """Return a loss (n,) from log-probabilities (n, V) of student and teacher; needs `teacher_request.vocabulary`.

        By default it is `generalised_jsd` with `beta_of_divergence`.
        """
        if self.beta_of_divergence is None:
            raise NotImplementedError
        return generalised_jsd(logq, logp, self.beta_of_divergence)

    @property
    def beta_of_divergence(self) -> float | None:
        """The beta of the generalised Jensen-Shannon divergence; without effect where a class overrides `divergence`."""
        return None

    @property
    def closed_form(self) -> float | None:
        """The beta with which `divergence` has a closed form; None where a class overrides `divergence`."""
        return self.beta_of_divergence if type(self).divergence is LoopAdapter.divergence else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Who may write the responses of a stage's steps: student, data, teacher."""
        return ("student",)

    def source(self, seed: int) -> Source:
        """Return who writes a step's responses, one of `sources`; `seed` is the step's own."""
        return self.sources[0]

    def scorer(self, ctx: StageContext) -> Teacher | None:
        """Return the model that scores the responses: the teacher, for adapters that need its scores."""
        return ctx.teacher if self.requirements.teacher in ("sampled", "top_k", "full") else None

    def teacher_prompts(self, ctx: StageContext, rollouts: Sequence[Rollout]) -> list[list[int]] | None:
        """Return the prompts, as token ids, after which the scorer reads the responses; None means the student's."""
        return None

    def temperature(self, training: Training) -> float:
        """Return the temperature of the student's and the teacher's log-probabilities: that of the rollouts."""
        return training.temperature

    def credit(self, ctx: StageContext, rollouts: list[Rollout]) -> list[Rollout]:
        """Return the rollouts with their `credit`, the value of each response to the loss; by default as they are."""
        return rollouts

    def after_update(self, ctx: StageContext) -> None:
        """Do the method's work after each optimiser update, such as moving an average of the weights; by default nothing."""

    @property
    def follows_updates(self) -> bool:
        """Whether `after_update` does anything."""
        return type(self).after_update is not LoopAdapter.after_update

    def refuse(self, training: Training) -> None:
        """Raise `ConfigError` for a budget that does not fit `reduction`, or whose rollouts the updates do not divide."""
        if training.tokens_per_batch is not None and self.reduction == "micro_batch_mean":
            raise ConfigError(
                "reduction micro_batch_mean averages over micro-batches of a fixed number of sequences, but tokens_per_batch "
                "makes micro-batches of different numbers; set micro_batch in its place, or use another reduction"
            )
        for source in self.sources:
            # The data has one reference for each prompt.
            each = 1 if source == "data" else training.num_generations
            if (rollouts := training.prompts_per_step * each) % self.updates_per_rollout:
                raise ConfigError(
                    f"updates_per_rollout {self.updates_per_rollout} does not divide the {rollouts} rollouts of a step "
                    f"({training.prompts_per_step} prompts, {each} of each from the {source}); change "
                    f"{'prompts_per_step' if source == 'data' else 'prompts_per_step or num_generations'}"
                )

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Train for the stage's number of steps, from its snapshot where there is one.

        Raises `TaskError` for a task without training items, `ModelError` for a teacher with another vocabulary,
        `TrainingError` for scores that cannot be a teacher's, and `NotFiniteError` for a loss or gradient that is not finite.
        """
        if empty := set(ctx.tasks) - {example.task for example in ctx.examples}:
            raise TaskError(f"task {', '.join(sorted(empty))} has no training items; a stage needs a `training_split`")
        if isinstance(scorer := self.scorer(ctx), LocalTeacher):
            check_same_rows(scorer.model, ctx.student.model)
        self.refuse(ctx.training)
        teachers = [each.model for each in (ctx.teacher, ctx.reference) if isinstance(each, LocalTeacher)]
        local_models = [ctx.student.model, *teachers]
        updates = ctx.training.steps * self.updates_per_rollout
        guards = Guards(ctx.warn, len(head_of(ctx.student.model).weight))
        with (
            packing(local_models, ctx.training.packs, ctx.warn),
            trainable(ctx.student, ctx.training.precision) as weights,
            recomputed_layers(weights.module, ctx.training.activation_checkpointing),
        ):
            updater = ctx.make_updater(weights.module, ctx.training.optimizer, updates)
            drawing = Drawing(self, ctx, weights)
            first = _resume(ctx, weights, updater, guards, drawing)
            batches = pairwise(chain(islice(prompt_batches(ctx), first, ctx.training.steps), [None]))
            for index, (prompts, following) in enumerate(batches, start=first):
                assert prompts is not None, "only the last step has none after it"
                with _log_non_finite_step(ctx, index, scorer is not None):
                    line = Step(self, ctx, weights, updater, drawing, index).run(prompts, following)
                ctx.log({**line, "warnings": guards.look_at(line)})
                with weights.whole() if ctx.measures(index + 1) else nullcontext():
                    ctx.measure(index + 1)
                ctx.snapshots.offer(index + 1, lambda: _state(ctx, weights, updater, guards, drawing))
        return StageResult(ctx.training.steps)


@contextmanager
def _log_non_finite_step(ctx: StageContext, index: int, scored: bool) -> Generator[None]:
    """Log a line for a step that ends the stage, so that reports show why it ended; `scored` says whether a teacher scores."""
    try:
        yield
    except NotFiniteError as error:
        ctx.log(broken_step(index))
        if scored or index:
            raise
        raise NotFiniteError(
            f"{error}; no teacher scores for this adapter, so `logp` and `advantage` are NaN: a loss that uses them sets "
            "`teacher_needs`"
        ) from error


def _resume(ctx: StageContext, weights: Trainable, updater: Updater, guards: Guards, drawing: Drawing) -> int:
    """Restore the state of the snapshot, if there is one, and return the first step to do."""
    state = ctx.snapshots.load()
    if state is None:
        return 0
    weights.load_state_dict(state["student"])
    updater.load_state_dict(state["updater"])
    guards.load_state_dict(state["guards"])
    drawing.restore(state.get("ahead"))
    _set_generators(state)
    if ctx.reference is not None:
        ctx.reference.model.load_state_dict(state["reference"])
    return int(state["step"])


def _state(ctx: StageContext, weights: Trainable, updater: Updater, guards: Guards, drawing: Drawing) -> dict[str, Any]:
    state = {
        "student": weights.state_dict(),
        "updater": updater.state_dict(),
        "guards": guards.state_dict(),
        **_generators(),
    }
    if (ahead := drawing.state()) is not None:
        state["ahead"] = ahead
    return state if ctx.reference is None else {**state, "reference": ctx.reference.model.state_dict()}


def _generators() -> dict[str, Any]:
    """Return the states of torch's random generators, the CPU's and every GPU's, which draw dropout and samples."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random": torch.get_rng_state(), "random_cuda": devices}


def _set_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["random"])
    # On a machine with a different number of GPUs, their generators keep the states that the stage's seed gave them.
    if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
