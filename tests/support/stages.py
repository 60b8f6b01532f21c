"""One training step on scripted responses, with the gradients that its optimiser saw: what tests of losses share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.loop.prompts import prompt_batches
from harness.adapter import Adapter, StageContext
from harness.config.training import Optimizer
from harness.lm.optimiser import UpdateResult
from harness.lm.rollouts import Batch, Reduction
from tests.support.models import STOP, ScriptedEngine, context, example, gradients, local_teacher, qwen3

PROMPTS = [[3, 4, 5], [8], [3, 1, 4, 1, 5], [9, 10], [11, 12, 13], [7, 7]]
RESPONSES = [[6, 7, STOP], [9, STOP], [9], [14, 15, 16, 17, STOP], [STOP], [5, 6, 7, 8]]
REDUCTIONS: list[Reduction] = ["sequence_mean", "token_mean"]


class Recorder:
    """Stands in for the optimiser: keeps each update's gradients and takes a plain step of size `rate`."""

    rate = 0.0
    made: ClassVar[list[Recorder]] = []

    def __init__(self, module: nn.Module, settings: Optimizer, total_updates: int) -> None:
        self.module, self.total_updates = module, total_updates
        self.gradients: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.batches: list[list[Batch]] = []
        self.made.append(self)

    def update(
        self,
        batches: Iterable[Batch],
        loss_of: Callable[[Batch], Tensor],
        penalties: Iterable[Callable[[], Tensor]] = (),
    ) -> UpdateResult:
        self.module.zero_grad()
        self.batches.append(list(batches))
        losses = []
        for batch in self.batches[-1]:
            loss = loss_of(batch)
            loss.backward()
            losses.append(loss.item())
        self.gradients.append({n.removeprefix("model."): g for n, g in gradients(self.module).items()})
        self.losses.append(sum(losses))
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter -= self.rate * parameter.grad
        return UpdateResult(sum(losses), 0.0, 0.0)


def trained(adapter: Adapter, log: list[dict[str, Any]] | None = None, **training: Any) -> Recorder:
    """Run one step of an adapter on the scripted rollouts and return what its optimiser saw."""
    adapter.train_stage(stage(training, log))
    return Recorder.made[-1]


def stage(training: dict[str, Any] | None = None, log: list[dict[str, Any]] | None = None) -> StageContext:
    """Return a stage whose student answers with the scripted responses; the start that scores is another model."""
    examples = [example(prompt, target) for prompt, target in zip(PROMPTS, RESPONSES, strict=True)]
    engines = [ScriptedEngine(in_order(RESPONSES)) for _ in range(2)]
    return context(
        qwen3(),
        engines[0],
        examples,
        training,
        local_teacher(),
        log,
        reference=local_teacher(2),
        teacher_engine=engines[1],
    )


def in_order(responses: list[list[int]]) -> list[list[int]]:
    """Return responses in the order in which the first batch asks for them."""
    ctx = context(None, ScriptedEngine([]), [example(p, r) for p, r in zip(PROMPTS, responses, strict=True)])
    return [item.target for item in next(prompt_batches(ctx))]
