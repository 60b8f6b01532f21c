"""What a training step reports about itself: token statistics, lengths and truncation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.logprobs import LogProbs
from harness.rollouts import Rollout
from harness.training import UpdateResult

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class StepLog:
    """Collects one step's token statistics over micro-batches and updates."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = rollouts
        self.entropy: list[Tensor] = []
        self.advantage: list[Tensor] = []
        self.routed: list[Tensor] = []
        self.updates: list[UpdateResult] = []

    def tokens(self, student: LogProbs, advantage: Tensor | None, routed: Tensor | None) -> None:
        """Add a micro-batch's tokens."""
        self.entropy.append(student.entropy)
        if advantage is not None:
            self.advantage.append(advantage)
        if routed is not None:
            self.routed.append(routed.float())

    def update(self, result: UpdateResult) -> None:
        """Add an optimiser update."""
        self.updates.append(result)

    def summary(self) -> dict[str, Any]:
        """Return the step's line: entropy and advantages in nats per response token, shares in 0..1."""
        lengths = [len(r.response) for r in self.rollouts]
        truncated = sum(r.finish == "length" for r in self.rollouts)
        return {
            "loss": _mean([u.loss for u in self.updates]),
            "grad_norm": _mean([u.grad_norm for u in self.updates]),
            "lr": self.updates[-1].lr if self.updates else None,
            "entropy": _tensor_mean(self.entropy),
            **_advantage(self.advantage),
            "routed_fkl": _tensor_mean(self.routed),
            "response_tokens_mean": _mean([float(n) for n in lengths]),
            "truncated_share": truncated / max(1, len(lengths)),
            "tokens": sum(lengths) + sum(len(r.example.prompt) for r in self.rollouts),
        }


def _advantage(parts: list[Tensor]) -> dict[str, float | None]:
    names = [f"advantage_q{round(100 * q):02d}" for q in QUANTILES]
    if not parts:
        return dict.fromkeys(["advantage_mean", *names])
    advantage = torch.cat(parts).double()
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=advantage.device)
    values = torch.quantile(advantage, levels)
    quantiles = {name: value.item() for name, value in zip(names, values, strict=True)}
    return {"advantage_mean": advantage.mean().item(), **quantiles}


def _tensor_mean(parts: list[Tensor]) -> float | None:
    return torch.cat(parts).double().mean().item() if parts else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
