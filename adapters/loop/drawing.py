"""Draw the responses of a stage's steps: when a step begins or, with `training.staleness: 1`, while the step before it trains.

A response that is drawn ahead comes from the weights before the previous step's updates. It carries the log-probabilities with
which it was drawn: the engine's if it reports them, else the student's, computed before its update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from harness.adapter import Source, StageContext
from harness.engines.engine import Completion, Engine, Sampling, answer_all
from harness.engines.first_process import FirstProcessEngine
from harness.lm.logprobs import StudentRequest
from harness.lm.packing import packs
from harness.lm.precision import autocast
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Example, Rollout, make_batches
from harness.lm.seeding import derive_seed
from harness.lm.trained.weights import Trainable

if TYPE_CHECKING:
    from adapters.loop.training_loop import LoopAdapter

Wait = Callable[[], list[Completion]]


@runtime_checkable
class BackgroundEngine(Protocol):
    """An engine that copies the present weights, and answers while they are trained further."""

    def begin(self, prompts: Sequence[list[int]], sampling: Sampling) -> Wait:
        """Begin to answer, and return a function that waits for the completions."""
        ...


class Drawing:
    """Draws a stage's responses, and holds those of the next step where they are drawn ahead."""

    def __init__(self, adapter: LoopAdapter, ctx: StageContext, weights: Trainable) -> None:
        self.adapter, self.ctx, self.weights, self.ranks = adapter, ctx, weights, current_ranks()
        self._ahead: Wait | None = None

    def take(self, step: int, prompts: Sequence[Example]) -> list[Rollout]:
        """Return a step's rollouts for its `prompts`, drawn ahead or now; the data's are the references."""
        training, source = self.ctx.training, self.source(step)
        if source == "data":
            limit = training.max_new_tokens
            drawn = [Rollout(e, e.target[:limit], "stop" if len(e.target) <= limit else "length") for e in prompts]
            return self._with_staleness(drawn, 0)
        ahead, self._ahead = self._ahead, None
        completions = ahead() if ahead else self._answers(step, self._repeated(prompts), wait=True)()
        return self._with_staleness(self._rollouts(prompts, completions), int(ahead is not None))

    def draw_ahead(self, step: int, prompts: Sequence[Example]) -> None:
        """Draw the student's rollouts of the next step with the present weights, where the suite has staleness.

        Servers and other processes draw them in the background; an engine of this process draws them now.
        """
        if self.ctx.training.staleness == 0 or self.source(step) != "student":
            return
        repeated = self._repeated(prompts)
        wait = self._answers(step, repeated, wait=False)
        if isinstance(self.ctx.engine, BackgroundEngine):
            self._ahead = wait
            return
        scored = self._with_logprobs(self._rollouts(prompts, wait()))
        self._ahead = lambda: scored

    def source(self, step: int) -> Source:
        """Return who writes a step's responses: student, data or teacher."""
        return self.adapter.source(derive_seed(self.ctx.seed, "source", step))

    def state(self) -> list[dict[str, Any]] | None:
        """Wait for the rollouts that are drawn ahead, and return them for a snapshot; None where there are none."""
        if self._ahead is None:
            return None
        completions = self._ahead()
        self._ahead = lambda: completions
        return [{"tokens": c.tokens, "finish": c.finish, "logprobs": c.logprobs} for c in completions]

    def restore(self, state: list[dict[str, Any]] | None) -> None:
        """Restore the rollouts of the next step from a snapshot's `state`."""
        if state is not None:
            completions = [Completion(**each) for each in state]
            self._ahead = lambda: completions

    def _answers(self, step: int, repeated: Sequence[Example], wait: bool) -> Wait:
        """Return a function that waits for one completion per prompt; `wait` says whether to draw them before it returns."""
        student, training = self.source(step) == "student", self.ctx.training
        engine = self.ctx.engine if student else self.ctx.teacher_engine
        assert engine is not None, "the adapter did not require a teacher that generates"
        sampling = Sampling(
            max_new_tokens=training.max_new_tokens,
            temperature=training.temperature,
            stop_ids=self.ctx.renderer.stop_ids,
            seed=derive_seed(self.ctx.seed, "rollouts", step),
        )
        prompts = [example.prompt for example in repeated]
        if not wait and isinstance(engine, BackgroundEngine):
            with self.weights.whole():
                return engine.begin(prompts, sampling)
        completions = self._generate(engine, prompts, sampling)
        return lambda: completions

    def _generate(self, engine: Engine, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        if self.ranks.size == 1:
            return answer_all(engine, prompts, sampling)
        if isinstance(engine, FirstProcessEngine):
            with self.weights.whole():
                return answer_all(engine, prompts, sampling)
        # An answer depends on how often its prompt is in the call, so one process answers all copies of a prompt.
        mine = self.ranks.share([tuple(prompt) for prompt in prompts])
        with self.weights.whole():
            own = answer_all(engine, [prompts[i] for i in mine], sampling) if mine else []
        answers = dict(pair for part in self.ranks.gather(list(zip(mine, own, strict=True))) for pair in part)
        return [answers[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _with_logprobs(self, rollouts: list[Rollout]) -> list[Completion]:
        """Return the rollouts as completions with the student's present log-probabilities, without dropout."""
        training, place = self.ctx.training, {id(rollout): number for number, rollout in enumerate(rollouts)}
        packed = training.packs and packs(self.ctx.student.model)
        limits = training.micro_batch, self.ctx.device, training.tokens_per_batch, packed
        asked = StudentRequest(self.adapter.temperature(training))
        self.weights.module.eval()
        known: dict[int, tuple[float, ...]] = {}
        for batch in make_batches(rollouts, "token_mean", *limits, self.ranks):
            with autocast(self.ctx.device, training.autocast):
                chosen = self.weights.module(batch, batch.targets[:, None], asked).chosen[:, 0]
            parts = chosen.double().split([len(rollout.response) for rollout in batch.rollouts])
            pairs = zip(batch.rollouts, parts, strict=True)
            known |= {} if batch.filler else {place[id(rollout)]: tuple(part.tolist()) for rollout, part in pairs}
        every = {number: scores for part in self.ranks.gather(known) for number, scores in part.items()}
        return [Completion(r.response, r.finish, every.get(number, ())) for number, r in enumerate(rollouts)]

    def _repeated(self, prompts: Sequence[Example]) -> list[Example]:
        return [example for example in prompts for _ in range(self.ctx.training.num_generations)]

    def _rollouts(self, prompts: Sequence[Example], completions: Sequence[Completion]) -> list[Rollout]:
        pairs = zip(self._repeated(prompts), completions, strict=True)
        return [Rollout(e, c.tokens, c.finish, logprobs=c.logprobs) for e, c in pairs]

    def _with_staleness(self, rollouts: list[Rollout], staleness: int) -> list[Rollout]:
        """Return rollouts with `staleness`: by how many steps older weights drew them; unset without staleness."""
        return [replace(r, staleness=staleness) for r in rollouts] if self.ctx.training.staleness else rollouts
