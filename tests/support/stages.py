"""Helpers of tests of losses: one training step on scripted responses, with the gradients that its optimiser got."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.aopd import AOPD
from adapters.conformance.recording import RecordingUpdater
from adapters.loop.prompts import prompt_batches
from adapters.loop.tokens import Tokens
from harness.adapter import Adapter, StageContext
from harness.config.training import Optimizer
from harness.lm.optimiser import UpdateResult
from harness.lm.rollouts import Batch, Reduction
from tests.support.models import STOP, ScriptedEngine, context, dense_logprobs, example, local_teacher, qwen3

PROMPTS = [[3, 4, 5], [8], [3, 1, 4, 1, 5], [9, 10], [11, 12, 13], [7, 7]]
RESPONSES = [[6, 7, STOP], [9, STOP], [9], [14, 15, 16, 17, STOP], [STOP], [5, 6, 7, 8]]
REDUCTIONS: list[Reduction] = ["sequence_mean", "token_mean"]


class Recorder(RecordingUpdater):
    """The recorder of the conformance suite in place of the optimiser; `made` lists all, `rate` is the size of a step."""

    rate = 0.0
    made: ClassVar[list[Recorder]] = []

    def __init__(self, module: nn.Module, settings: Optimizer, total_updates: int) -> None:
        super().__init__(module, type(self).rate, [])
        self.total_updates = total_updates
        self.losses: list[float] = []
        self.made.append(self)

    @property
    def gradients(self) -> list[dict[str, Tensor]]:
        """Each update's gradients by the student's own names."""
        return [{name.removeprefix("model."): g for name, g in update.gradient.items()} for update in self.updates]

    @property
    def batches(self) -> list[list[Batch]]:
        """Each update's micro-batches."""
        return [update.batches for update in self.updates]

    def update(
        self,
        batches: Iterable[Batch],
        loss_of: Callable[[Batch], Tensor],
        penalties: Iterable[Callable[[], Tensor]] = (),
    ) -> UpdateResult:
        losses: list[float] = []

        def keep(batch: Batch) -> Tensor:
            loss = loss_of(batch)
            losses.append(loss.item())
            return loss

        super().update(batches, keep, penalties)
        self.losses.append(sum(losses))
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


def dense_loss(adapter: Any, model: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
    """Return METHOD's loss written out over full logits, sequence by sequence."""
    sequences: list[Tensor] = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        window = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        logq = dense_logprobs(model, prompt + response, temperature)[window]
        logp = dense_logprobs(teacher, prompt + response, temperature)[window].detach()
        chosen = torch.tensor(response)[:, None]
        own_q, own_p = logq.gather(-1, chosen)[:, 0], logp.gather(-1, chosen)[:, 0]
        advantage = (own_p - own_q).detach()
        loss = -adapter.weight * advantage * own_q
        if isinstance(adapter, AOPD):
            top = logp.topk(adapter.top_k)
            forward_kl = (top.values.exp() * (top.values - logq.gather(-1, top.indices))).sum(-1)
            if adapter.gate == "log_ratio":
                gate = -advantage >= adapter.threshold
            else:
                gate = own_q.detach().exp() - own_p.exp() > adapter.threshold
            loss = torch.where(gate, forward_kl, loss)
        sequences.append(loss)
    if adapter.reduction == "token_mean":
        return torch.cat(sequences).mean()
    return torch.stack([loss.mean() for loss in sequences]).mean()


def tokens(logq: Any, logp: Any, logq_old: Any = None, top_q: Any = None, top_p: Any = None) -> Tokens:
    """Return tokens from probabilities' logarithms; the sampling policy is the current one unless `logq_old` is given."""
    q = torch.as_tensor(logq, dtype=torch.float64)
    old = q.detach() if logq_old is None else torch.as_tensor(logq_old, dtype=torch.float64)
    none = torch.zeros(len(q), 0, dtype=torch.float64)
    top = [none if t is None else torch.as_tensor(t, dtype=torch.float64) for t in (top_q, top_p)]
    return Tokens(q, old, torch.as_tensor(logp, dtype=torch.float64), top[0], top[1])
