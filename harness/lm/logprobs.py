"""Log-probabilities of a few chosen tokens without ever holding (tokens, vocabulary) logits.

Every loss here is `alpha * softmax - sparse` in the logits, so one pass over tiles of tokens and vocabulary serves all of
them: the forward keeps (N, C) numbers, the backward computes each tile's logits again. `StudentForward` is the module to
wrap for distributed training, because the head must be used inside the wrapped forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.lm.output_layer import Divergence, Head, Rows, SelectedLogProbs, WholeVocabulary, scan
from harness.lm.output_layer_gradients import wide
from harness.lm.rollouts import Batch


@dataclass(frozen=True)
class LogProbs:
    """The student at N positions: `chosen` (N, C) with gradient; `entropy` and `logsumexp` (N,) in nats without.

    `divergence` (N,) with gradient is a loss over the whole vocabulary, where one was asked for; `own_top` (M, K) are the
    student's own most probable ids at every so-manieth position, for diagnostics; `rest` (N,) with gradient is the
    log-probability of all tokens that are not held.
    """

    chosen: Tensor
    entropy: Tensor
    logsumexp: Tensor
    divergence: Tensor | None = None
    own_top: Tensor | None = None
    rest: Tensor | None = None


@dataclass(frozen=True)
class TeacherRequest:
    """What is asked of a teacher at each position, beside the sampled token's log-probability.

    `rest` asks the student for the log-probability of all that is outside the teacher's top K.
    """

    top_k: int = 0
    entropy: bool = False
    vocabulary: bool = False
    rest: bool = False


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


def selected_logprobs(hidden: Tensor, head: Head, ids: Tensor, held: Tensor | None = None) -> LogProbs:
    """Return log softmax(head(hidden)) at `ids`, with entropy and logsumexp from the same pass.

    `hidden` is (N, H), `ids` (N, C); `held` (N, K) asks for the log-probability of all other tokens together. The gradient
    reaches `hidden`, `head.weight` and `head.bias`: d chosen_c / d logits_v = 1[v = ids_c] - softmax_v.
    """
    # Log-probabilities are differences of large numbers: under autocast, the head still works in its weights' precision.
    with torch.autocast(hidden.device.type, enabled=False):
        values = SelectedLogProbs.apply(hidden.to(head.weight.dtype), head.weight, head.bias, ids, head, held)
    chosen, entropy, logsumexp, rest = values  # pyright: ignore[reportGeneralTypeIssues]
    return LogProbs(chosen, entropy, logsumexp, rest=rest)


def divergence_of(hidden: Tensor, head: Head, teacher: Rows, divergence: Divergence) -> Tensor:
    """Return `divergence(log q, log p)` (N,) over the whole vocabulary, a chunk of tokens at a time.

    `divergence` maps log-probabilities (n, V) of student and teacher to (n,) losses. A chunk's rows live only while it is
    computed, and again, from both heads, while its gradient is.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(head.weight.dtype)
        return WholeVocabulary.apply(hidden, head.weight, head.bias, head, teacher, divergence)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def teacher_scores(hidden: Tensor, head: Head, sampled: Tensor, wanted: TeacherRequest) -> TeacherScores:
    """Return log-probabilities of `sampled` (N,) and of the K most probable tokens, normalised over the vocabulary."""
    hidden = hidden.to(head.weight.dtype)

    @torch.no_grad()
    def rows_of(rows: slice) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return head.logits(hidden[rows]).log_softmax(-1)

    with torch.autocast(hidden.device.type, enabled=False):
        seen = scan(hidden, head, sampled[:, None], wanted.top_k)
    return TeacherScores(
        sampled=seen.chosen[:, 0],
        top_ids=seen.top_ids,
        top_logprobs=seen.top_logprobs,
        entropy=seen.entropy if wanted.entropy else None,
        rows=rows_of if wanted.vocabulary else None,
    )


@torch.no_grad()
def top_ids(hidden: Tensor, head: Head, k: int) -> Tensor:
    """Return the K most probable ids (N, K) at hidden states (N, H)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head.logits(hidden.to(head.weight.dtype)).topk(k, dim=-1).indices


def sampled_rows(count: int, at_most: int = 128) -> slice:
    """Return evenly spaced positions, `at_most` of them, for what is too dear to look at everywhere."""
    return slice(None, None, max(1, -(-count // at_most)))


@dataclass(frozen=True)
class StudentRequest:
    """What a forward pass is asked for beside chosen log-probabilities.

    `divergence` is taken against the teacher's rows at each position; `own_top` is a number of the student's most probable
    ids; `held` are the columns of the ids beside which the rest is asked for.
    """

    temperature: float = 1.0
    divergence: Divergence | None = None
    teacher: Rows | None = None
    own_top: int = 0
    held: slice | None = None


class StudentForward(nn.Module):
    """A causal LM whose forward returns log-probabilities of chosen tokens instead of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, ids: Tensor, ask: StudentRequest = StudentRequest()) -> LogProbs:
        """Score `ids` (N, C) at the N positions that predict the batch's response tokens, and what else is asked."""
        hidden, head = response_hidden(self.model, batch), head_of(self.model, ask.temperature)
        scores = selected_logprobs(hidden, head, ids, None if ask.held is None else ids[:, ask.held])
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
    """Return the output layer of a causal LM with the scaling that architectures known here apply to logits.

    Raises `ModelError` for a model without a linear one. `check_head` finds architectures that do something else.
    """
    layer = model.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(f"{type(model).__name__} has no linear output layer; a causal language model was expected")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale, softcap, temperature)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise `ModelError` when the logits that are trained on here are not the model's own, on one short sequence.

    An architecture may scale, cap or shift them in a way that `head_of` does not know.
    """
    head = head_of(model)
    ids = torch.arange(min(8, len(head.weight)), device=head.weight.device)[None]
    own = model(input_ids=ids, use_cache=False).logits[0].to(wide(head.weight))
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    ours = head.logits(hidden.to(head.weight.dtype))
    # A rounding or two of the largest logit; other kernels of one type may differ by as much.
    allowed = max(1e-4, 4 * torch.finfo(model.dtype).eps) * float(own.abs().max())
    if not (apart := float((ours - own).abs().max())) <= allowed:
        raise ModelError(
            f"{type(model).__name__} makes its logits in a way that is not known here: they are up to {apart:.2g} away from "
            f"those of its output layer, expected at most {allowed:.2g}; take a model of another architecture"
        )
