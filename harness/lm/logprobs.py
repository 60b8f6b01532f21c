"""Log-probabilities of a few chosen tokens, without a tensor of (tokens, vocabulary) logits.

The gradient of every loss of chosen tokens has the form `alpha * softmax - sparse` in the logits, so one pass over tiles of
tokens and vocabulary is enough: the forward pass keeps (N, C) numbers, the backward pass computes each tile's logits again.
`StudentForward` is the module to wrap for distributed training, because the output layer must be used inside the wrapped
forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.lm.kernels.model_divergence import ModelDivergence
from harness.lm.output_layer import Divergence, SelectedLogProbs, WholeVocabulary, fused_on, scan
from harness.lm.packing import packed_inputs
from harness.lm.rollouts import Batch
from harness.lm.tiles import Head, ModelRows, Rows, wide

SAMPLED_ROWS = 128


@dataclass(frozen=True)
class LogProbs:
    """The student at N positions: `chosen` (N, C) with gradient; `entropy` and `logsumexp` (N,) without; all in nats.

    Present only when requested: `divergence` (N,) with gradient, a loss over the whole vocabulary; `own_top` (M, K), the
    student's most probable ids at evenly spaced positions, for diagnostics; `rest` (N,) with gradient, the log-probability
    of all tokens outside `held`.
    """

    chosen: Tensor
    entropy: Tensor
    logsumexp: Tensor
    divergence: Tensor | None = None
    own_top: Tensor | None = None
    rest: Tensor | None = None


@dataclass(frozen=True)
class TeacherRequest:
    """What a loss needs from the teacher at each position, in addition to the sampled token's log-probability.

    `top_k`: the log-probabilities of its K most probable tokens; `entropy`: its entropy; `vocabulary`: its log-probabilities
    over the whole vocabulary. `rest` concerns the student: its log-probability of all tokens outside the teacher's top K.
    """

    top_k: int = 0
    entropy: bool = False
    vocabulary: bool = False
    rest: bool = False


@dataclass(frozen=True)
class TeacherScores:
    """The teacher at N positions: log-probabilities `sampled` (N,) of the response's tokens, in nats.

    Its own most probable tokens are `top_ids` (N, K) with `top_logprobs` (N, K). Present only when requested: `entropy` (N,)
    in nats, and `rows`, which maps a slice of positions to log-probabilities over the vocabulary (n, V).
    """

    sampled: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    entropy: Tensor | None = None
    rows: Rows | None = None


def selected_logprobs(hidden: Tensor, head: Head, ids: Tensor, held: Tensor | None = None) -> LogProbs:
    """Return log softmax(head(hidden)) at `ids`, with entropy and logsumexp from the same pass.

    `hidden` is (N, H), `ids` (N, C); with `held` (N, K) the result has the log-probability `rest` of all other tokens.
    Gradients flow to `hidden`, `head.weight` and `head.bias`: d chosen_c / d logits_v = 1[v = ids_c] - softmax_v.
    """
    # A log-probability is a difference of large numbers, so autocast must not round them: a CPU multiplies in the head's
    # precision, a GPU in bfloat16 with sums in float32.
    products = head.for_products(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        values = SelectedLogProbs.apply(hidden.to(products.weight.dtype), head.weight, head.bias, ids, products, held)
    chosen, entropy, logsumexp, rest = values  # pyright: ignore[reportGeneralTypeIssues]
    return LogProbs(chosen, entropy, logsumexp, rest=rest)


def divergence_of(
    hidden: Tensor, head: Head, teacher: Rows, divergence: Divergence, beta: float | None = None
) -> Tensor:
    """Return `divergence(log q, log p)` (N,) over the whole vocabulary, one chunk of tokens at a time.

    `divergence` maps log-probabilities (n, V) of student and teacher to losses (n,). A chunk's rows are computed twice, for
    the loss and for its gradient, instead of being stored.

    `beta` is given if `divergence` is the generalised Jensen-Shannon divergence with this beta (0 forward KL, 1 reverse KL).
    If the teacher is a model in this process, its closed form is then computed, which takes less time than autograd.
    """
    products, model = head.for_products(hidden), getattr(teacher, "model", teacher)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.to(products.weight.dtype)
        if beta is not None and isinstance(model, ModelRows):
            known = model, beta, fused_on(hidden.device)
            return ModelDivergence.apply(hidden, head.weight, head.bias, products, *known)  # pyright: ignore[reportReturnType]
        return WholeVocabulary.apply(hidden, head.weight, head.bias, products, teacher, divergence)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def teacher_scores(hidden: Tensor, head: Head, sampled: Tensor, request: TeacherRequest) -> TeacherScores:
    """Return the teacher's log-probabilities of `sampled` (N,) and what `request` names, from its hidden states (N, H)."""
    head = head.for_products(hidden)
    hidden = hidden.to(head.weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        found = scan(hidden, head, sampled[:, None], request.top_k)
    return TeacherScores(
        sampled=found.chosen[:, 0],
        top_ids=found.top_ids,
        top_logprobs=found.top_logprobs,
        entropy=found.entropy if request.entropy else None,
        rows=ModelRows(hidden, head) if request.vocabulary else None,
    )


@torch.no_grad()
def top_ids(hidden: Tensor, head: Head, k: int) -> Tensor:
    """Return the K most probable ids (N, K) at hidden states (N, H)."""
    head = head.for_products(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        return head.logits(hidden.to(head.weight.dtype)).topk(k, dim=-1).indices


def sampled_rows(count: int) -> slice:
    """Return at most SAMPLED_ROWS evenly spaced positions of `count`, for diagnostics too expensive at every position."""
    return slice(None, None, max(1, -(-count // SAMPLED_ROWS)))


@dataclass(frozen=True)
class StudentRequest:
    """What a forward pass of the student computes in addition to the chosen log-probabilities.

    `divergence` is computed against the `teacher`'s rows at each position, with `beta` as in `divergence_of`. `own_top` is the
    number of the student's most probable ids. `held` selects columns of `ids`: `rest` is of all tokens outside them.
    `temperature` divides the logits.
    """

    temperature: float = 1.0
    divergence: Divergence | None = None
    teacher: Rows | None = None
    own_top: int = 0
    held: slice | None = None
    beta: float | None = None


class StudentForward(nn.Module):
    """A causal language model whose forward pass returns log-probabilities of chosen tokens instead of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, ids: Tensor, request: StudentRequest = StudentRequest()) -> LogProbs:
        """Score `ids` (N, C) at the N positions that predict the batch's response tokens, and add what `request` names."""
        hidden, head = response_hidden(self.model, batch), head_of(self.model, request.temperature)
        scores = selected_logprobs(hidden, head, ids, None if request.held is None else ids[:, request.held])
        if request.own_top:
            scores = replace(scores, own_top=top_ids(hidden[sampled_rows(len(hidden))], head, request.own_top))
        if request.divergence is not None and request.teacher is not None:
            asked = request.teacher, request.divergence, request.beta
            scores = replace(scores, divergence=divergence_of(hidden, head, *asked))
        return scores


def response_hidden(model: Any, batch: Batch) -> Tensor:
    """Return hidden states (N, H) at the positions whose next token is a response token."""
    # Padding on the right needs no attention mask: with causal attention no real token attends to it.
    inputs = packed_inputs(model, batch.lengths, batch.input_ids.device) if batch.packed else {}
    return _hidden(model, batch.input_ids, **inputs).flatten(0, 1).index_select(0, batch.places)


def _hidden(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    return model.get_decoder()(input_ids=ids, use_cache=False, **inputs).last_hidden_state


def head_of(model: Any, temperature: float = 1.0) -> Head:
    """Return a model's output layer, with the logit scaling and softcap that its configuration names.

    Raises `ModelError` for a model without a linear output layer. `check_head` refuses models that scale in other ways.
    """
    layer = model.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(f"{type(model).__name__} has no linear output layer; use a causal language model")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale, softcap, temperature)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise `ModelError` if decoder and `head_of` do not give a model's own logits on a short sequence.

    An architecture may scale, cap or shift its logits in a way that `head_of` does not know, have no separate decoder, or
    let a position attend to later tokens, so that padding on the right changes its logits.
    """
    head, name = head_of(model), type(model).__name__
    ids = torch.arange(min(8, len(head.weight)), device=head.weight.device)[None]
    try:
        own = model(input_ids=ids, use_cache=False).logits[0].to(wide(head.weight))
        ours, short = (
            head.logits(_hidden(model, part)[0].to(head.weight.dtype)) for part in (ids, ids[:, : len(own) // 2])
        )
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name} does not separate its decoder from its output layer ({reason}); use another model"
        ) from error
    # Two kernels of one dtype may differ by a few roundings of the largest logit.
    allowed = max(1e-4, 4 * torch.finfo(model.dtype).eps) * float(own.abs().max())
    if not (apart := float((ours - own).abs().max())) <= allowed:
        raise ModelError(
            f"{name} computes its logits in an unknown way: they differ from those of its output layer by up to {apart:.2g}, "
            f"expected at most {allowed:.2g}; use a model of a different architecture"
        )
    if not (apart := float((ours[: len(short)] - short).abs().max())) <= allowed:
        raise ModelError(
            f"{name} is not causal: tokens further right change its logits by up to {apart:.2g}, expected at most "
            f"{allowed:.2g}; use a causal language model"
        )
