"""Collect what a training step reports: losses, token statistics, agreement with the teacher, pulls, truncation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapters.loop.logit_gradients import gradient_at, gradient_at_chosen, norms, pull_on
from adapters.loop.tokens import MOST, TokenLosses
from harness.lm.logprobs import LogProbs, TeacherScores, sampled_rows
from harness.lm.optimiser import UpdateResult
from harness.lm.ranks import current_ranks
from harness.lm.rollouts import Batch, Rollout

Key = TypeVar("Key")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MODE = 1  # column of the teacher's most probable token; column 0 is the sampled token
IMPOSSIBLE = 1e-7  # a smaller probability is as good as 0: float32 rounds it away next to 1


class StepLog:
    """Collects one step's token statistics over micro-batches and updates; `top_k` is the teacher request's."""

    def __init__(self, rollouts: Sequence[Rollout], top_k: int = 0) -> None:
        self.rollouts, self.top_k = rollouts, top_k
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        # Of each micro-batch: whether its losses have a gradient at chosen tokens at all, and its pulls by name.
        self.pulls: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.updates: list[UpdateResult] = []
        self.padding: int = 0
        self.positions: int = 0

    def batches(self, batches: Sequence[Batch]) -> None:
        """Count the positions and the padding of the step's micro-batches."""
        self.padding += sum(batch.padding for batch in batches)
        self.positions += sum(batch.input_ids.numel() for batch in batches)

    def tokens(self, student: LogProbs, routed: Tensor | None) -> None:
        """Add the entropy of a micro-batch's tokens, and which of them (N,) were routed to forward KL."""
        self.parts["entropy"].append(student.entropy)
        if routed is not None:
            self.parts["routed"].append(routed.float())

    def against_teacher(
        self,
        student: LogProbs,
        ids: Tensor,
        teacher: TeacherScores,
        advantage: Tensor,
        outcome: TokenLosses,
        weights: Tensor,
    ) -> None:
        """Add the advantage of a micro-batch's tokens, their agreement with the teacher, and the pulls of the losses.

        `ids` (N, 1 + K) are the sampled tokens and the teacher's top K, `weights` (N,) the tokens' shares of the loss. Figures
        of the top K are left out where K is 0.
        """
        self.parts["advantage"].append(advantage)
        self.parts["teacher_neginf"].append((teacher.sampled.exp() < IMPOSSIBLE).float())
        if (entropy := entropy_of(teacher)) is not None:
            self.parts["teacher_entropy"].append(entropy)
        if (agrees := first_choice(ids)) is not None:
            self.parts["teacher_agreement"].append(agrees.float())
            self.parts["teacher_top_mass"].append(teacher.top_logprobs.exp().sum(-1))
            self.parts["student_top_mass"].append(student.chosen[:, 1:].detach().exp().sum(-1))
        if student.own_top is not None:
            rows = teacher.top_ids[sampled_rows(len(ids))]
            self.parts["overlap"].append((rows[:, :, None] == student.own_top[:, None, :]).any(-1).float().mean(-1))
        self._pulls(student, ids, teacher, outcome, weights)

    def against_engine(self, logq: Tensor, batch: Batch) -> None:
        """Add the differences between log-probabilities (N,) of a micro-batch's tokens and the engine's when it drew them."""
        if any(rollout.staleness for rollout in batch.rollouts):
            return  # older weights drew them, see `importance`
        drawn = [rollout.logprobs for rollout in batch.rollouts]
        sampled = [logprob for logprobs in drawn if logprobs is not None for logprob in logprobs]
        if len(sampled) == len(logq):
            self.parts["mismatch"].append(logq.detach() - torch.tensor(sampled, device=logq.device))

    def importance(self, ratio: Tensor | None) -> None:
        """Add q / q_drew (N,) of a micro-batch's tokens that were drawn ahead."""
        if ratio is not None:
            self.parts["importance"].append(ratio)

    def update(self, result: UpdateResult) -> None:
        """Add an optimiser update."""
        self.updates.append(result)

    def summary(self) -> dict[str, Any]:
        """Return the step's line: entropy and advantages in nats per response token, rewards and shares in 0..1.

        Masses and overlap are those of the teacher's top K, K in `top_k`. `pull_up` and `pull_down` are means over all tokens
        of the descent step on the logit of the teacher's most probable token: upwards where the student gives that token less
        probability than the teacher, downwards where it gives it more, and 0 elsewhere. `fkl_gradient_share` is the routed
        tokens' share of all |dL/dz|.
        """
        self._gather()
        lengths = [len(r.response) for r in self.rollouts]
        rewards = [r.reward for r in self.rollouts if r.reward is not None]
        truncated = sum(r.finish == "length" for r in self.rollouts)
        return {
            "loss": _mean([u.loss for u in self.updates]),
            "grad_norm": _mean([u.grad_norm for u in self.updates]),
            "lr": self.updates[-1].lr if self.updates else None,
            "entropy": self._average("entropy"),
            **_advantage(self.parts["advantage"]),
            "routed_fkl": self._average("routed"),
            "fkl_gradient_share": self._share("routed_norm", "norm"),
            "teacher_entropy": self._average("teacher_entropy"),
            "teacher_agreement": self._average("teacher_agreement"),
            "teacher_neginf_share": self._average("teacher_neginf"),
            "top_k": max(1, self.top_k) if self.parts["overlap"] else None,
            "teacher_top_mass": self._average("teacher_top_mass"),
            "student_top_mass": self._average("student_top_mass"),
            "overlap": self._average("overlap"),
            "pull_up": self._average("pull_up"),
            "pull_down": self._average("pull_down"),
            "reward_mean": _mean(rewards),
            **_mismatch(self.parts["mismatch"]),
            "response_tokens_mean": _mean([float(n) for n in lengths]),
            "truncated_share": truncated / max(1, len(lengths)),
            "tokens": sum(lengths) + sum(len(r.example.prompt) for r in self.rollouts),
            "padding_share": self.padding / self.positions if self.positions else None,
            **self._stale(),
        }

    def _stale(self) -> dict[str, Any]:
        """Return staleness and importance ratios of the rollouts, where the suite lets them be drawn ahead; else nothing."""
        ages = [r.staleness for r in self.rollouts if r.staleness is not None]
        if not ages:
            return {}
        ratio = torch.cat(self.parts["importance"]).double() if self.parts["importance"] else None
        return {
            "staleness": max(ages),
            "importance_mean": None if ratio is None else ratio.mean().item(),
            "importance_max": None if ratio is None else ratio.max().item(),
            "importance_cut": None if ratio is None else (ratio > MOST).double().mean().item(),
        }

    def _gather(self) -> None:
        """Move the token statistics to the host, all at once, and join those of all processes."""
        pulls = to_host(
            {(place, name): part for place, (_, named) in enumerate(self.pulls) for name, part in named.items()}
        )
        present = to_host({place: has.reshape(1) for place, (has, _) in enumerate(self.pulls)})
        parts = {(name, place): part for name, parts in self.parts.items() for place, part in enumerate(parts)}
        self.parts = defaultdict(list)
        for (name, _), part in to_host(parts).items():
            self.parts[name].append(part)
        for (place, name), part in pulls.items():
            if present[place]:
                self.parts[name].append(part)
        self.pulls = []
        if (ranks := current_ranks()).size == 1:
            return
        own = {name: torch.cat(parts) for name, parts in self.parts.items() if parts}
        self.parts = defaultdict(list)
        for parts in ranks.gather(own):
            for name, values in parts.items():
                self.parts[name].append(values)
        self.padding, self.positions = sum(ranks.gather(self.padding)), sum(ranks.gather(self.positions))

    def _pulls(
        self, student: LogProbs, ids: Tensor, teacher: TeacherScores, outcome: TokenLosses, weights: Tensor
    ) -> None:
        gradient = gradient_at_chosen(outcome.losses, student.chosen, ids)
        at_rest = gradient_at(outcome.losses, student.rest)
        logq, rest = student.chosen.detach(), None if student.rest is None else student.rest.detach()
        named: dict[str, Tensor] = {}
        if teacher.top_ids.shape[1]:
            below = logq[:, MODE] < teacher.top_logprobs[:, 0]
            pull = pull_on(MODE, gradient, logq, at_rest)
            named = {"pull_up": torch.where(below, pull, 0.0), "pull_down": torch.where(below, 0.0, -pull)}
        if outcome.routed is not None:
            size = weights * norms(gradient, logq, ids, at_rest, rest)
            named |= {"norm": size, "routed_norm": size * outcome.routed}
        self.pulls.append((gradient.any(), named))

    def _average(self, name: str) -> float | None:
        return torch.cat(self.parts[name]).double().mean().item() if self.parts[name] else None

    def _share(self, part: str, whole: str) -> float | None:
        if not self.parts[whole]:
            return None
        total = torch.cat(self.parts[whole]).double().sum().item()
        return torch.cat(self.parts[part]).double().sum().item() / total if total else None


class RolloutFigures:
    """A step's figures of each rollout, as means over its tokens; `ctx.keep` writes them next to the texts."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sequence[Rollout], dict[str, Tensor]]] = []
        self.found: dict[int, dict[str, float]] = {}

    def add(self, rollouts: Sequence[Rollout], tokens: Mapping[str, Tensor | None]) -> None:
        """Add a micro-batch's values (N,) by name, for N tokens in the order of its rollouts.

        None is left out, and so are values of another length, which belong to other tokens.
        """
        count = sum(len(rollout.response) for rollout in rollouts)
        present = {name: values for name, values in tokens.items() if values is not None}
        known = {name: values.detach() for name, values in present.items() if len(values) == count}
        self.waiting.append((rollouts, known))

    def _settle(self) -> None:
        """Move the added values to the host, all at once, and compute the means."""
        keyed = {(i, name): part for i, (_, known) in enumerate(self.waiting) for name, part in known.items()}
        values = to_host(keyed)
        for place, (rollouts, known) in enumerate(self.waiting):
            lengths = [len(rollout.response) for rollout in rollouts]
            split = {name: torch.split(values[place, name], lengths) for name in known}
            for row, rollout in enumerate(rollouts):
                self.found[id(rollout)] = {name: float(parts[row].mean()) for name, parts in split.items()}
        self.waiting = []

    def of(self, rollout: Rollout) -> dict[str, float]:
        """Return a rollout's figures by name; an empty mapping for a rollout that was not added."""
        self._settle()
        return self.found.get(id(rollout), {})


def to_host(parts: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Return tensors (n,) by key as float64 on the host, copied as one tensor: the device waits for every copy."""
    if not parts:
        return {}
    whole = torch.cat([part.detach().double() for part in parts.values()]).cpu()
    return dict(zip(parts, torch.split(whole, [len(part) for part in parts.values()]), strict=True))


def first_choice(ids: Tensor) -> Tensor | None:
    """Return whether sampled tokens are the teacher's most probable ones, (N,), from `ids` (N, 1 + K); None where K is 0."""
    return ids[:, 0] == ids[:, MODE] if ids.shape[1] > MODE else None


def entropy_of(teacher: TeacherScores) -> Tensor | None:
    """Return the teacher's entropy (N,), or its lower bound where the teacher's top K is all that is known; else None.

    With r the probability of all tokens outside the top K, each of them has at most m = min(p_K, r), so the entropy is at
    least -sum over the top K of p log p, minus r log m. The bound is exact for a flat teacher, and where r is 0.
    """
    if teacher.entropy is not None:
        return teacher.entropy
    if not teacher.top_ids.shape[1]:
        return None
    top = teacher.top_logprobs.double()
    rest = (1 - top.exp().sum(-1)).clamp(min=0)
    return -(top.exp() * top).sum(-1) - rest * torch.minimum(rest, top[:, -1].exp()).clamp(min=1e-300).log()


def _advantage(parts: list[Tensor]) -> dict[str, float | None]:
    names = [f"advantage_q{round(100 * q):02d}" for q in QUANTILES]
    if not parts:
        return dict.fromkeys(["advantage_mean", *names])
    advantage = torch.cat(parts).double()
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=advantage.device)
    values = torch.quantile(advantage, levels)
    quantiles = {name: value.item() for name, value in zip(names, values, strict=True)}
    return {"advantage_mean": advantage.mean().item(), **quantiles}


def _mismatch(parts: list[Tensor]) -> dict[str, float | None]:
    """Return how far trainer and engine disagree about tokens that the engine drew, in nats.

    With d the trainer's log-probability minus the engine's: mean and maximum of |d|, and `mismatch_kl`, the mean of
    e^d - 1 - d, an unbiased and never negative estimate of KL(engine || trainer).
    """
    if not parts:
        return dict.fromkeys(["mismatch_mean", "mismatch_max", "mismatch_kl"])
    apart = torch.cat(parts).double()
    return {
        "mismatch_mean": apart.abs().mean().item(),
        "mismatch_max": apart.abs().max().item(),
        "mismatch_kl": (apart.expm1() - apart).mean().item(),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
