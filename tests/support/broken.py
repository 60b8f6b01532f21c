"""Adapters that are wrong on purpose, each with one defect that a published implementation had (METHOD section 4)."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from pydantic import ConfigDict, field_validator
from torch import Tensor

from adapters.aopd import AOPD
from adapters.eopd import EOPD
from adapters.exopd import ExOPD
from adapters.grpo import GRPO
from adapters.kl import ForwardKL, ReverseKL
from adapters.loop import step, training_loop
from adapters.loop.divergences import forward_kl, top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import Objective
from adapters.opd import OPD
from adapters.sdft import SDFT
from adapters.sft import SFT
from adapters.wrappers.kl_to_start import KLToStart
from adapters.wrappers.wrapper import Inner
from harness.adapter import StageContext, StageResult
from harness.errors import TrainingError
from harness.lm.logprobs import TeacherScores
from harness.lm.optimiser import Updater
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Batch, make_batches


class FlippedKL(ReverseKL):
    """Says reverse KL and computes forward KL."""

    def divergence(self, logq: Tensor, logp: Tensor) -> Tensor:
        return forward_kl(logq, logp)


class WrongSign(OPD):
    """Pushes away from the teacher."""

    @property
    def objective(self) -> Objective | None:
        return None

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(-super().token_losses(tokens).losses)


class DividedByK(ForwardKL):
    """A mean over the top K where the divergence is a sum."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(top_k_forward_kl(tokens) / tokens.top_logq.shape[-1])


class FromElsewhere(OPD):
    """Adds a term that does not vanish where the student is the teacher."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(super().token_losses(tokens).losses - tokens.logq.exp())


class DetachedForwardKL(AOPD):
    """The forward-KL branch has a value and no gradient."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        routed = self.routed(tokens)
        kl = top_k_forward_kl(tokens).detach()
        return TokenLosses(torch.where(routed, kl, self.policy_gradient(tokens)), routed)


class DetachedAddition(EOPD):
    """The added term has a value and no gradient; every token still has the policy gradient."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        found = super().token_losses(tokens)
        extra = found.losses - self.policy_gradient(tokens)
        return replace(found, losses=self.policy_gradient(tokens) + extra.detach())


class DetachedEverything(ReverseKL):
    """The divergence is computed without gradient, and a zero keeps autograd quiet."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(super().token_losses(tokens).losses.detach() + 0 * tokens.logq)


class ClampedForwardKL(AOPD):
    """Truncated forward KL may be negative; a clamp at 0 kills its gradient there (verl 7856)."""

    threshold: float = -math.inf

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(top_k_forward_kl(tokens).clamp(min=0), self.routed(tokens))


class MeanOverMicroBatch(OPD):
    """The loss is a mean over what lies in one forward pass (trl 6006)."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        losses = super().token_losses(tokens).losses
        return TokenLosses(losses.mean().expand_as(losses))


class MeanPenalty(KLToStart):
    """A wrapper's penalty is a mean over what lies in one forward pass."""

    of: Inner = Inner(adapter="opd")

    def _penalty(self, logq: Tensor, logref: Tensor) -> Tensor:
        losses = super()._penalty(logq, logref)
        return losses.mean().expand_as(losses)


class GateUpsideDown(AOPD):
    """Routes the tokens that the teacher likes better."""

    def routed(self, tokens: Tokens) -> Tensor:
        return ~super().routed(tokens)


class StrictGate(AOPD):
    """A_t = 0 stays in the policy gradient, where it has no gradient."""

    def routed(self, tokens: Tokens) -> Tensor:
        return super().routed(tokens) & (tokens.advantage != 0)


class OtherBatches(OPD):
    """Base of those whose batches are wrong."""

    def spoil(self, batch: Batch) -> Batch:
        """Return the batch with its defect."""
        raise NotImplementedError

    def train_stage(self, ctx: StageContext) -> StageResult:
        def spoiled(*arguments: Any) -> list[Batch]:
            return [self.spoil(batch) for batch in make_batches(*arguments)]

        with mock.patch.object(step, "make_batches", spoiled):
            return super().train_stage(ctx)


class ShiftedMask(OtherBatches):
    """Logits and labels are off by one (ms-swift 8436)."""

    def spoil(self, batch: Batch) -> Batch:
        return replace(batch, predicts=batch.predicts.roll(1, 1))


class WeightlessStop(OtherBatches):
    """The stop token is masked because pad == eos, so the student never learns to stop (trl 6357)."""

    def spoil(self, batch: Batch) -> Batch:
        return replace(batch, weights=batch.weights * (batch.targets != 1))


class MeanByWeights(OtherBatches):
    """Weights add up to 1 in every micro-batch."""

    def spoil(self, batch: Batch) -> Batch:
        return replace(batch, weights=batch.weights / batch.weights.sum())


class PromptsToo(OtherBatches):
    """The last prompt token is trained on, in addition to the response."""

    def spoil(self, batch: Batch) -> Batch:
        predicts = batch.predicts | batch.predicts.roll(-1, 1)
        predicts[:, -1] = False
        targets = batch.input_ids.roll(-1, 1)[predicts]
        ones = torch.full((len(targets),), 1 / len(targets))
        return replace(batch, predicts=predicts, targets=targets, weights=ones, credit=0 * ones)


class DroppedStop(OPD):
    """The stop token is cut off before batches are made."""

    def credit(self, ctx: StageContext, rollouts: list[Any]) -> list[Any]:
        return [replace(r, response=r.response[:-1]) if r.response[-1:] == [1] else r for r in rollouts]


def as_they_are(scores: TeacherScores, *_: Any) -> TeacherScores:
    """Return a teacher's scores without a check."""
    return scores


class SwallowedZeros(OPD):
    """Nobody looks whether the teacher's scores are scores."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        with mock.patch.object(step, "check_scores", as_they_are), mock.patch.object(step, "refuse_certainty"):
            return super().train_stage(ctx)


class OneByOne(OPD):
    """Only a step in which nothing at all was scored is noticed; single failed requests are not."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        def whole_step(parts: Any) -> None:
            if parts and all(bool((scores == 0).all()) for _, scores in parts):
                raise TrainingError("nothing was scored")

        checks = {"check_scores": as_they_are, "refuse_certainty": whole_step}
        with mock.patch.multiple(step, **checks):
            return super().train_stage(ctx)


class SwallowedNaN(OPD):
    """A teacher's failure is filled with zeros, which is probability 1 (the official AOPD code)."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        def filled(scores: TeacherScores, *_: Any) -> TeacherScores:
            top = scores.top_logprobs.nan_to_num(-1.0)
            return replace(scores, sampled=scores.sampled.nan_to_num(0.0), top_logprobs=top)

        with mock.patch.object(step, "check_scores", filled), mock.patch.object(step, "refuse_certainty"):
            return super().train_stage(ctx)


class AnyVocabulary(OPD):
    """Takes a teacher with more tokens than the student has."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        with mock.patch.object(training_loop, "check_same_rows"):
            return super().train_stage(ctx)


class FailsOtherwise(OPD):
    """Stops on any stage, with any vocabularies."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        raise ValueError("something else entirely")


class NegativeSFT(SFT):
    """Unlearns the references."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(tokens.logq)


class NegativeGRPO(GRPO):
    """Minimises the reward."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(-super().token_losses(tokens).losses)


class UpsideDownCredit(GRPO):
    """Credits the responses that are worse than their group."""

    def credit(self, ctx: StageContext, rollouts: list[Any]) -> list[Any]:
        return [replace(r, credit=-r.credit) for r in super().credit(ctx, rollouts)]


class WrongExOPD(ExOPD):
    """The extrapolation is on the student's drift, not on the teacher's gain: only the formula written out can tell."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        assert tokens.logref is not None
        gain, drift = tokens.logp - tokens.logref, tokens.logq_old - tokens.logref
        return TokenLosses(self.policy_gradient(tokens, gain - self.extrapolation * drift))


class InvertedEMA(SDFT):
    """The average keeps `ema_rate` of the teacher and takes the rest from the student (trl 4935)."""

    @torch.no_grad()
    def after_update(self, ctx: StageContext) -> None:
        assert ctx.reference is not None
        for old, new in zip(ctx.reference.model.parameters(), ctx.student.model.parameters(), strict=True):
            old.lerp_(new.to(old.dtype), 1 - self.ema_rate)


class DividesByTokens(OPD):
    """Divides by the tokens of a step, of which there may be none (trl 5885)."""

    def credit(self, ctx: StageContext, rollouts: list[Any]) -> list[Any]:
        return [replace(r, credit=1 / sum(len(other.response) for other in rollouts)) for r in rollouts]


class OnlyInTheFirst(OPD):
    """Trains in the first of several processes only."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        if current_ranks().rank:
            raise ValueError("only the first process has the data")
        return super().train_stage(ctx)


class ForgetfulOptimiser(OPD):
    """A stage that continues from a snapshot does not restore the optimiser's state."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        with mock.patch.object(Updater, "load_state_dict"):
            return super().train_stage(ctx)


class DrawsDoNotMatter(OPD):
    """Says of a policy gradient that the drawn token does not matter, so that stale rollouts are not weighed."""

    depends_on_draw = False


class DrawsByItself(OPD):
    """Draws from a generator that no seed reaches."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(super().token_losses(tokens).losses * random.SystemRandom().uniform(0.5, 1.5))


class NoSteps(OPD):
    """Trains and says that it did not."""

    def train_stage(self, ctx: StageContext) -> StageResult:
        super().train_stage(ctx)
        return StageResult(0)


class Lenient(OPD):
    """Options can be changed, and misspelt."""

    model_config = ConfigDict(frozen=False, extra="ignore")
    taste: float = 1.0


class Drifting(OPD):
    """An option changes each time that it is read."""

    @field_validator("weight")
    @classmethod
    def _scaled(cls, weight: float) -> float:
        return 1.25 * weight
