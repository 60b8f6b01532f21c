"""Operations on log-probabilities, ours and peers', over the same random hidden states, heads and ids.

Each ends with a scalar; those of training carry a gradient to hidden states and head.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapters.aopd import AOPD
from adapters.loop.diagnostics import StepLog
from adapters.loop.divergences import generalised_jsd, reverse_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.opd import OPD
from harness.lm.logprobs import (
    Head,
    LogProbs,
    TeacherRequest,
    TeacherScores,
    divergence_of,
    sampled_rows,
    selected_logprobs,
    teacher_scores,
    top_ids,
)
from harness.lm.tiles import ModelRows

TOP_K = 32


@dataclass(frozen=True)
class Size:
    """What is measured: tokens, vocabulary and hidden size."""

    tokens: int = 4096
    vocabulary: int = 151_936
    hidden: int = 512


@dataclass(frozen=True)
class Inputs:
    """N hidden states (N, H) and a head (V, H) of student and teacher, ids (N, 1 + K), and the teacher at them."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    ids: Tensor
    logp: Tensor

    def first(self, tokens: int) -> Inputs:
        """Return the same with fewer tokens and a head whose gradient is its own."""
        rows = slice(0, tokens)
        return replace(
            self,
            hidden=self.hidden.detach()[rows].requires_grad_(),
            weight=self.weight.detach().requires_grad_(),
            teacher_hidden=self.teacher_hidden[rows],
            ids=self.ids[rows],
            logp=self.logp[rows],
        )


def make_inputs(size: Size, device: str) -> Inputs:
    """Return random inputs: logits of standard deviation 2, teacher's log-probabilities around the student's."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(rows: int, deviation: float) -> Tensor:
        drawn = torch.randn(rows, size.hidden, generator=generator, device=device)
        return drawn.mul_(deviation).to(dtype)

    deviation, shape = 2 / size.hidden**0.5, (size.tokens, 1 + TOP_K)
    return Inputs(
        hidden=normal(size.tokens, 1),
        weight=normal(size.vocabulary, deviation),
        teacher_hidden=normal(size.tokens, 1),
        teacher_weight=normal(size.vocabulary, deviation),
        ids=torch.randint(size.vocabulary, shape, generator=generator, device=device),
        logp=torch.randn(shape, generator=generator, device=device) * 2 - 14,
    )


Work = Callable[[Inputs], Tensor]


def dense_aopd(inputs: Inputs) -> Tensor:
    """AOPD's loss from full logits and their log-softmax."""
    return _aopd(_dense(inputs.hidden, inputs.weight).gather(-1, inputs.ids), inputs).losses.mean()


def ours_aopd(inputs: Inputs) -> Tensor:
    """AOPD's loss: sampled token and top K in one operation."""
    return _aopd(_ours(inputs, 1 + TOP_K).chosen, inputs).losses.mean()


def ours_aopd_diagnosed(inputs: Inputs) -> Tensor:
    """AOPD's loss, and everything that the step log asks for."""
    student = _ours(inputs, 1 + TOP_K)
    every = sampled_rows(len(inputs.hidden))
    student = replace(student, own_top=top_ids(inputs.hidden[every], Head(inputs.weight), TOP_K))
    losses, log = _aopd(student.chosen, inputs), StepLog([], TOP_K)
    weights = torch.full_like(inputs.logp[:, 0], 1 / len(inputs.logp))
    teacher = TeacherScores(inputs.logp[:, 0], inputs.ids[:, 1:], inputs.logp[:, 1:])
    log.against_teacher(student, inputs.ids, teacher, _tokens(student.chosen, inputs).advantage, losses, weights)
    log.tokens(student, losses.routed)
    log.summary()
    return losses.losses.mean()


def ours_opd(inputs: Inputs) -> Tensor:
    """OPD's loss, which needs only the sampled token."""
    return OPD().token_losses(_tokens(_ours(inputs, 1).chosen, inputs)).losses.mean()


def trl_opd(inputs: Inputs) -> Tensor:
    """OPD's loss on TRL's log-probabilities of one token, with the entropy as ours has it, in TRL's own tiles."""
    function: Any = importlib.import_module("trl.kernels").ChunkedLogProbFunction
    tile = importlib.import_module("trl.trainer.utils")._CHUNKED_LOGPROB_CHUNK_SIZE
    chosen = function.apply(inputs.hidden, inputs.weight, None, inputs.ids[:, 0], 1.0, tile, None, 1.0, ("entropy",))[0]
    return OPD().token_losses(_tokens(chosen[:, None], inputs)).losses.mean()


def liger_opd(inputs: Inputs) -> Tensor:
    """The mean negative log-probability of one token by Liger's kernel, which returns no loss per token."""
    module: Any = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    found = module.LigerFusedLinearCrossEntropyFunction.apply(inputs.hidden, inputs.weight, inputs.ids[:, 0])
    return found[0] if isinstance(found, tuple) else found


def _over_vocabulary(divergence: Callable[[Tensor, Tensor], Tensor], beta: float) -> dict[str, Work]:
    """Return a divergence from full logits, from ours and from TRL's, the teacher's head included."""

    def dense(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            logp = _dense(inputs.teacher_hidden, inputs.teacher_weight)
        return divergence(_dense(inputs.hidden, inputs.weight), logp).mean()

    def ours(inputs: Inputs) -> Tensor:
        rows = ModelRows(inputs.teacher_hidden, Head(inputs.teacher_weight))
        return divergence_of(inputs.hidden, Head(inputs.weight), rows, divergence, beta).mean()

    def trl(inputs: Inputs) -> Tensor:
        loss: Any = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss
        states, mask = (inputs.hidden[None], inputs.teacher_hidden[None]), torch.ones_like(inputs.ids[None, :, 0])
        return loss(*states, inputs.weight, inputs.teacher_weight, mask, beta)[0]

    def liger(inputs: Inputs) -> Tensor:
        function: Any = importlib.import_module("liger_kernel.ops.fused_linear_jsd").LigerFusedLinearJSDFunction
        sides = inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight
        return function.apply(*sides, None, beta)

    return {"dense": dense, "ours": ours, "trl": trl, "liger": liger}


def dense_teacher(inputs: Inputs) -> Tensor:
    """The teacher's log-probabilities of sampled token and top K from full logits."""
    with torch.no_grad():
        logp = _dense(inputs.teacher_hidden, inputs.teacher_weight)
        return logp.gather(-1, inputs.ids[:, :1]).sum() + logp.topk(TOP_K, dim=-1).values.sum()


def ours_teacher(inputs: Inputs) -> Tensor:
    """The same by `teacher_scores`."""
    scores = teacher_scores(
        inputs.teacher_hidden, Head(inputs.teacher_weight), inputs.ids[:, 0], TeacherRequest(top_k=TOP_K)
    )
    return scores.sampled.sum() + scores.top_logprobs.sum()


VARIANTS: dict[str, Work] = {
    work.__name__: work
    for work in (dense_aopd, ours_aopd, ours_aopd_diagnosed, ours_opd, trl_opd, liger_opd, dense_teacher, ours_teacher)
}
VARIANTS |= {f"{who}_reverse_kl": work for who, work in _over_vocabulary(reverse_kl, 1.0).items()}
VARIANTS |= {f"{who}_jsd": work for who, work in _over_vocabulary(lambda q, p: generalised_jsd(q, p, 0.5), 0.5).items()}


def _ours(inputs: Inputs, columns: int) -> LogProbs:
    return selected_logprobs(inputs.hidden, Head(inputs.weight), inputs.ids[:, :columns])


def _dense(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(-1)


def _aopd(chosen: Tensor, inputs: Inputs) -> TokenLosses:
    return AOPD().token_losses(_tokens(chosen, inputs))


def _tokens(chosen: Tensor, inputs: Inputs) -> Tokens:
    own = chosen[:, 0]
    return Tokens(own, own.detach(), inputs.logp[:, 0], chosen[:, 1:], inputs.logp[:, 1:])
