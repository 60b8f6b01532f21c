"""Check that a loss tolerates responses of an older student (`training.staleness: 1`), exactly, over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from adapters.conformance.direction import expectation, one_position, student_rows, with_whole_vocabulary
from adapters.conformance.outcomes import ConformanceError, DoesNotApply
from adapters.conformance.recording import distance, record_updates
from adapters.conformance.small_stage import AdapterUnderTest
from adapters.loop.training_loop import LoopAdapter
from harness.adapter import StageContext
from harness.engines.engine import Completion, Sampling

RATE = 1e-3  # size of the gradient step from the weights that draw to those that train
TOLERANCE = 1e-6


def takes_stale_responses(subject: AdapterUnderTest) -> None:
    """Responses that the student drew a step earlier give the same expected gradient as fresh ones."""
    if not subject.adapter.capabilities.takes_stale:
        raise DoesNotApply("it takes no stale responses, so training.staleness: 1 is refused")
    adapter = subject.method
    if adapter.sources != ("student",):
        raise DoesNotApply("not all of its responses are the student's")
    if adapter.requirements.teacher != "none" or adapter.scorer(subject.stage()) is not None:
        adapter = with_whole_vocabulary(subject)
    adapter = adapter.model_copy(update={"updates_per_rollout": 1})
    drew, trains = _around_a_step(adapter, subject)
    stale, fresh = (record_updates(adapter, _stage(subject, 2, staleness), RATE)[1] for staleness in (1, 0))
    off = distance(expectation([stale], drew), expectation([fresh], trains))
    if not off <= TOLERANCE:
        raise ConformanceError(
            f"responses that an older student drew give an expected gradient that is {off:.1e} of its size away from that of "
            "fresh ones; keep `depends_on_draw` True unless the loss is a function of the position alone"
        )


def _around_a_step(adapter: LoopAdapter, subject: AdapterUnderTest) -> tuple[Tensor, Tensor]:
    """Return the student's probabilities (V,) before a step and after it."""
    ctx = _stage(subject, 1)
    before = student_rows(ctx).detach().exp()[0]
    record_updates(adapter, ctx, RATE)
    return before, student_rows(ctx).detach().exp()[0]


def _stage(subject: AdapterUnderTest, steps: int, staleness: int = 0) -> StageContext:
    return replace(one_position(subject, steps=steps, staleness=staleness), engine=EveryToken(subject.vocabulary))


class EveryToken:
    """Answers the prompts of a call with one token each: every token of the vocabulary in turn."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return one token for each prompt, in the vocabulary's order."""
        return [Completion([number % self.vocabulary], "length") for number in range(len(prompts))]
