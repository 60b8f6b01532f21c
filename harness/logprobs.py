"""Log-probabilities of a few chosen tokens without ever holding (tokens, vocabulary) logits.

Every loss here is `alpha * softmax - sparse` in the logits, so one pass over chunks of tokens serves all of them: the
forward keeps (N, C) numbers, the backward recomputes one chunk of logits at a time. `StudentForward` is the module to
wrap for distributed training, because the head must be used inside the wrapped forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.errors import ModelError
from harness.rollouts import Batch

CHUNK_ELEMENTS = 2**25
Rows = Callable[[slice], Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LogProbs:
    """The student at N positions: `chosen` (N, C) with gradient; `entropy` and `logsumexp` (N,) in nats without.

    `divergence` (N,) with gradient is a loss over the whole vocabulary, where one was asked for; `own_top` (M, K) are the
    student's own most probable ids at every so-manieth position, for diagnostics.
    """

    chosen: Tensor
    entropy: Tensor
    logsumexp: Tensor
    divergence: Tensor | None = None
    own_top: Tensor | None = None


@dataclass(frozen=True)
class Wanted:
    """What is asked of a teacher at each position, beside the sampled token's log-probability."""

    top_k: int = 0
    entropy: bool = False
    vocabulary: bool = False


@dataclass(frozen=True)
class TeacherScores:
    """The teacher at N positions: `sampled` (N,), its own `top_ids` (N, K) and their `top_logprobs` (N, K).

    `entropy` (N,) in nats, and `rows`, which gives a slice's log-probabilities over the vocabulary (n, V), where wanted.
    """

    sampled: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    entropy: Tensor | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Head:
    """The output layer: logits = softcap(scale * (hidden @ weight.T + bias)) / temperature."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float logits (n, V) of hidden states (n, H)."""
        raw = self.scale * _accumulating(nn.functional.linear(hidden, self.weight, self.bias))
        capped = raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)
        return capped / self.temperature

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of `logits` by the linear layer's output, elementwise."""
        if self.softcap is None:
            return self.scale / self.temperature
        return self.scale / self.temperature * (1 - (logits * self.temperature / self.softcap) ** 2)


def selected_logprobs(hidden: Tensor, head: Head, ids: Tensor) -> LogProbs:
    """Return log softmax(head(hidden)) at `ids`, with entropy and logsumexp from the same pass.

    `hidden` is (N, H), `ids` (N, C). The gradient reaches `hidden`, `head.weight` and `head.bias`:
    d chosen_c / d logits_v = 1[v = ids_c] - softmax_v.
    """
    # Log-probabilities are differences of large numbers: under autocast, the head still works in its weights' precision.
    with torch.autocast(hidden.device.type, enabled=False):
        values = _SelectedLogProbs.apply(hidden.to(head.weight.dtype), head.weight, head.bias, ids, head)
    chosen, entropy, logsumexp = values  # pyright: ignore[reportGeneralTypeIssues]
    return LogProbs(chosen, entropy, logsumexp)


def divergence_of(hidden: Tensor, head: Head, teacher: Rows, divergence: Divergence) -> Tensor:
    """Return `divergence(log q, log p)` (N,) over the whole vocabulary, a chunk of tokens at a time.

    `divergence` maps log-probabilities (n, V) of student and teacher to (n,) losses. A chunk's logits live only while it is
    computed, and again while its gradient is (activation checkpointing).
    """

    def chunk(states: Tensor, weight: Tensor, rows: slice) -> Tensor:
        return divergence(replace(head, weight=weight).logits(states).log_softmax(-1), teacher(rows))

    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(head.weight.dtype)
        parts = [
            checkpoint(chunk, hidden[rows], head.weight, rows, use_reentrant=False, preserve_rng_state=False)
            for rows in _chunks(hidden.shape[0], head.weight.shape[0])
        ]
    return torch.cat(parts)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def teacher_scores(hidden: Tensor, head: Head, sampled: Tensor, wanted: Wanted) -> TeacherScores:
    """Return log-probabilities of `sampled` (N,) and of the K most probable tokens, normalised over the vocabulary."""
    hidden = hidden.to(head.weight.dtype)

    @torch.no_grad()
    def rows_of(rows: slice) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return head.logits(hidden[rows]).log_softmax(-1)

    parts: list[tuple[Tensor, ...]] = []
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(hidden.shape[0], head.weight.shape[0]):
            logits = head.logits(hidden[rows])
            logsumexp = logits.logsumexp(-1, keepdim=True)
            top = logits.topk(wanted.top_k, dim=-1)
            own = logits.gather(-1, sampled[rows, None]) - logsumexp
            entropy = _entropy(logits, logsumexp[:, 0]) if wanted.entropy else logsumexp[:, 0]
            parts.append((own[:, 0], top.indices, top.values - logsumexp, entropy))
    own, ids, values, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return TeacherScores(own, ids, values, entropy if wanted.entropy else None, rows_of if wanted.vocabulary else None)


@torch.no_grad()
def top_ids(hidden: Tensor, head: Head, k: int) -> Tensor:
    """Return the K most probable ids (N, K) at hidden states (N, H)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head.logits(hidden.to(head.weight.dtype)).topk(k, dim=-1).indices


def sampled_rows(count: int, at_most: int = 128) -> slice:
    """Return evenly spaced positions, `at_most` of them, for what is too dear to look at everywhere."""
    return slice(None, None, max(1, -(-count // at_most)))


@dataclass(frozen=True)
class Asked:
    """What a forward pass is asked for beside chosen log-probabilities.

    `divergence` is taken against the teacher's rows at each position; `own_top` is a number of the student's most probable
    ids.
    """

    temperature: float = 1.0
    divergence: Divergence | None = None
    teacher: Rows | None = None
    own_top: int = 0


class StudentForward(nn.Module):
    """A causal LM whose forward returns log-probabilities of chosen tokens instead of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, ids: Tensor, ask: Asked = Asked()) -> LogProbs:
        """Score `ids` (N, C) at the N positions that predict the batch's response tokens, and what else is asked."""
        hidden, head = response_hidden(self.model, batch), head_of(self.model, ask.temperature)
        scores = selected_logprobs(hidden, head, ids)
        if ask.own_top:
            scores = replace(scores, own_top=top_ids(hidden[sampled_rows(len(hidden))], head, ask.own_top))
        if ask.divergence is not None and ask.teacher is not None:
            scores = replace(scores, divergence=divergence_of(hidden, head, ask.teacher, ask.divergence))
        return scores


def response_hidden(model: Any, batch: Batch) -> Tensor:
    """Return hidden states (N, H) at the positions whose next token is a response token."""
    # Right padding needs no attention mask under causal attention: no real token ever looks at a pad.
    output = model.get_decoder()(input_ids=batch.input_ids, use_cache=False)
    return output.last_hidden_state[batch.predicts]


def head_of(model: Any, temperature: float = 1.0) -> Head:
    """Return the output layer of a causal LM with the scaling its architecture applies to logits.

    Raises `ModelError` for an architecture whose logits are made in a way that is not known here.
    """
    layer = model.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(f"{type(model).__name__} has no linear output layer; a causal language model was expected")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale, softcap, temperature)


class _SelectedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, head: Head) -> Any:
        parts = [_forward_chunk(head.logits(hidden[rows]), ids[rows]) for rows in _chunks(len(hidden), len(weight))]
        chosen, entropy, logsumexp = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, ids, logsumexp)
        ctx.head = head
        ctx.mark_non_differentiable(entropy, logsumexp)
        return chosen, entropy, logsumexp

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, ids, logsumexp = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=logsumexp.dtype)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=logsumexp.dtype)
        for rows in _chunks(len(hidden), len(weight)):
            grad_logits = _backward_chunk(ctx.head, hidden[rows], ids[rows], grads[0][rows], logsumexp[rows])
            narrow = grad_logits.to(weight.dtype)
            grad_hidden[rows] = narrow @ weight
            grad_weight += narrow.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight.to(weight.dtype), None if bias is None else grad_bias.to(bias.dtype), None, None  # pyright: ignore[reportOptionalMemberAccess]


def _forward_chunk(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp = logits.logsumexp(-1)
    chosen = logits.gather(-1, ids) - logsumexp[:, None]
    return chosen, _entropy(logits, logsumexp), logsumexp


def _entropy(logits: Tensor, logsumexp: Tensor) -> Tensor:
    """Return logsumexp - sum_v softmax_v logits_v, (n,)."""
    return logsumexp - (torch.exp(logits - logsumexp[:, None]) * logits).sum(-1)


def _backward_chunk(head: Head, hidden: Tensor, ids: Tensor, grad: Tensor, logsumexp: Tensor) -> Tensor:
    """Return d loss / d linear output for one chunk: scatter(grad) - sum(grad) * softmax, through cap and scale."""
    logits = head.logits(hidden)
    softmax = torch.exp(logits - logsumexp[:, None])
    grad_logits = softmax.mul_(-grad.sum(-1, keepdim=True)).scatter_add_(-1, ids, grad)
    return grad_logits * head.slope(logits)


def _accumulating(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, max(tokens, 1), size):
        yield slice(start, start + size)
