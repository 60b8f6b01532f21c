"""The family's losses: gradients at the end of a stage equal METHOD section 3 written out over dense float64 logits.

The formulas here are independent of the adapters: they see full distributions, sequence by sequence, and are averaged as the
method says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.aopd import AOPD
from adapters.eopd import EOPD
from adapters.exopd import ExOPD
from adapters.gkd import GKD
from adapters.grpo import GRPO
from adapters.kl import ForwardKL, ReverseKL
from adapters.loop.tokens import Tokens, uniform_draws
from adapters.loop.training_loop import LoopAdapter
from adapters.sdft import SDFT
from adapters.sft import SeqKD
from adapters.tropd import TrOPD
from adapters.vopd import VOPD
from adapters.wrappers.kl_to_start import KLToStart
from adapters.wrappers.wrapper import Inner
from harness.adapter import Adapter, Requirements
from harness.config.training import Training
from harness.errors import ConfigError
from harness.lm.rollouts import Batch
from tests.support.broken import InvertedEMA, WrongExOPD
from tests.support.models import (
    VOCABULARY,
    assert_same_gradients,
    dense_logprobs,
    gradients,
    local_teacher,
    qwen3,
    rollout,
)
from tests.support.stages import PROMPTS, RESPONSES, Recorder, stage, trained


@dataclass(frozen=True)
class Dense:
    """One sequence's response positions: log-probabilities (n, V) of student, teacher and reference, and the tokens (n,)."""

    q: Tensor
    p: Tensor
    ref: Tensor
    y: Tensor

    def at(self, rows: Tensor) -> Tensor:
        """Return log-probabilities (n,) of the response tokens."""
        return rows.gather(-1, self.y[:, None])[:, 0]

    @property
    def advantage(self) -> Tensor:
        return (self.at(self.p) - self.at(self.q)).detach()

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the teacher's top log-probabilities (n, K), and the student's there."""
        found = self.p.topk(k)
        return found.values, self.q.gather(-1, found.indices)


def fkl_top(d: Dense, k: int) -> Tensor:
    p, q = d.top(k)
    return (p.exp() * (p - q)).sum(-1)


def fkl_renormalised(d: Dense, k: int) -> Tensor:
    p, q = (torch.softmax(side, -1) for side in d.top(k))
    return (p * (p.log() - q.log())).sum(-1)


def fkl_bucket(d: Dense, k: int) -> Tensor:
    p, q = (side.exp() for side in d.top(k))
    p, q = (torch.cat([side, 1 - side.sum(-1, keepdim=True)], -1) for side in (p, q))
    return (p * (p / q).log()).sum(-1)


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)


def jsd(d: Dense, beta: float) -> Tensor:
    m = (beta * d.p.exp() + (1 - beta) * d.q.exp()).log()
    return beta * kl(d.p, m) + (1 - beta) * kl(d.q, m)


def exopd(d: Dense) -> Tensor:
    advantage = 1.25 * (d.at(d.p) - d.at(d.ref)) - (d.at(d.q) - d.at(d.ref))
    return -advantage.detach() * d.at(d.q)


def eopd(d: Dense) -> Tensor:
    entropy = -(d.p.exp() * d.p).sum(-1)
    return -d.advantage * d.at(d.q) + torch.where(entropy > 2.6, fkl_top(d, 4), 0.0)


def vopd(d: Dense) -> Tensor:
    return -(d.advantage + kl(d.q, d.p).detach()) * d.at(d.q)


def tropd(d: Dense) -> Tensor:
    trust = (d.at(d.p) - d.at(d.q)).exp().clamp(max=1).detach()
    return torch.where(trust < 0.5, fkl_top(d, 4), -d.advantage * d.at(d.q))


def aopd(forward: Callable[[Dense, int], Tensor]) -> Callable[[Dense], Tensor]:
    return lambda d: torch.where(d.advantage <= 0, forward(d, 4), -d.advantage * d.at(d.q))


def weighted(d: Dense) -> Tensor:
    return torch.where(d.advantage <= 0, 0.7 * fkl_top(d, 4), -1.25 * d.advantage * d.at(d.q))


def symmetric(d: Dense) -> Tensor:
    return torch.where(d.advantage.abs() >= 0.5, fkl_top(d, 4), -d.advantage * d.at(d.q))


def held(d: Dense) -> Tensor:
    return -d.advantage * d.at(d.q) + 0.5 * 0.3 * (d.at(d.q) - d.at(d.ref)) ** 2


CASES: dict[str, tuple[Adapter, Callable[[Dense], Tensor]]] = {
    "gkd 0": (GKD(beta=0, lmbda=1), lambda d: kl(d.p, d.q)),
    "gkd 0.1": (GKD(beta=0.1, lmbda=1), lambda d: jsd(d, 0.1)),
    "gkd 0.5": (GKD(lmbda=1), lambda d: jsd(d, 0.5)),
    "gkd 0.9": (GKD(beta=0.9, lmbda=1), lambda d: jsd(d, 0.9)),
    "gkd 1": (GKD(beta=1, lmbda=1), lambda d: kl(d.q, d.p)),
    "rkl": (ReverseKL(), lambda d: kl(d.q, d.p)),
    "fkl": (ForwardKL(top_k=4), lambda d: fkl_top(d, 4)),
    "fkl bucket": (ForwardKL(top_k=4, tail="bucket"), lambda d: fkl_bucket(d, 4)),
    "fkl full": (ForwardKL(top_k=None), lambda d: kl(d.p, d.q)),
    "fkl all": (ForwardKL(top_k=VOCABULARY), lambda d: kl(d.p, d.q)),
    "exopd": (ExOPD(), exopd),
    "eopd": (EOPD(top_k=4, threshold=2.6, clip=None), eopd),
    "vopd": (VOPD(), vopd),
    "tropd threshold": (TrOPD(top_k=4, gate="threshold", trust=0.5), tropd),
    "aopd weighted": (AOPD(top_k=4, fkl_weight=0.7, weight=1.25), weighted),
    "aopd bucket": (AOPD(top_k=4, tail="bucket"), aopd(fkl_bucket)),
    "aopd renormalised": (AOPD(top_k=4, tail="renormalise"), aopd(fkl_renormalised)),
    "aopd symmetric": (AOPD(top_k=4, symmetric=True, threshold=0.5), symmetric),
    "kl_to_start": (KLToStart(of=Inner(adapter="opd"), beta=0.3), held),
}


def dense_loss(model: Any, loss: Callable[[Dense], Tensor]) -> Tensor:
    """Return the mean over sequences of the mean over tokens, as the adapters' default reduction has it."""
    teacher, reference = local_teacher().model, local_teacher(2).model
    means: list[Tensor] = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        window = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        q, p, ref = (dense_logprobs(m, prompt + response)[window] for m in (model, teacher, reference))
        means.append(loss(Dense(q, p.detach(), ref.detach(), torch.tensor(response))).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_method_on_dense_logits(name: str, micro_batch: int | None, recorder: type[Recorder]):
    adapter, loss = CASES[name]
    found = trained(adapter, micro_batch=micro_batch)
    model = qwen3()
    dense_loss(model, loss).backward()
    assert_same_gradients(found.gradients[0], gradients(model), 1e-6)


def test_the_formula_written_out_finds_a_lambda_on_the_wrong_term(recorder: type[Recorder]):
    model = qwen3()
    dense_loss(model, exopd).backward()
    with pytest.raises(AssertionError):
        assert_same_gradients(trained(WrongExOPD()).gradients[0], gradients(model), 1e-6)


def test_eopd_and_tropd_route_some_tokens_and_not_others(recorder: type[Recorder]):
    for name in ("eopd", "tropd threshold", "aopd symmetric"):
        log: list[dict[str, Any]] = []
        trained(CASES[name][0], log)
        assert 0 < log[0]["routed_fkl"] < 1, name


def grpo_losses(batch: Batch, kl: float) -> dict[str, Tensor]:
    """Return the gradient of the method's loss on dense logits, with the credits of the rollouts."""
    model, reference = qwen3(), local_teacher(2).model
    losses: list[Tensor] = []
    for r in batch.rollouts:
        window = slice(len(r.example.prompt) - 1, len(r.prompt_and_response) - 1)
        rows = [dense_logprobs(m, r.prompt_and_response)[window] for m in (model, reference)]
        q, ref = (x.gather(-1, torch.tensor(r.response)[:, None])[:, 0] for x in rows)
        ratio = ref.detach().exp() / q.exp()
        losses.append((-r.credit * q + kl * (ratio - ratio.log() - 1)).mean())
    torch.stack(losses).mean().backward()
    return gradients(model)


@pytest.mark.parametrize("kl", [0.0, 0.04])
def test_grpo_weighs_each_response_by_its_normalised_grade_and_holds_it_to_the_start(
    kl: float, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
):
    # Two answers to each of three prompts; every second one is right: mean 1/2, standard deviation of two sqrt(1/2).
    grades = iter([1.0, 0.0] * 3)
    monkeypatch.setattr("harness.adapter.StageContext.reward", lambda *_: next(grades))
    GRPO(kl=kl).train_stage(stage({"prompts_per_step": 3, "num_generations": 2}))
    (batch,) = recorder.made[-1].batches[0]
    normalised = 0.5 / (0.5**0.5 + 1e-4)
    assert sorted(r.credit for r in batch.rollouts) == pytest.approx([-normalised] * 3 + [normalised] * 3)
    assert_same_gradients(recorder.made[-1].gradients[0], grpo_losses(batch, kl), 1e-6)


def test_grpo_asks_for_the_start_only_where_its_kl_is_on():
    assert GRPO().requirements == Requirements(reference=True)
    assert GRPO(kl=0).requirements == Requirements()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_tropd_rejects_a_token_by_a_draw_of_its_own(micro_batch: int | None, recorder: type[Recorder]):
    log: list[dict[str, Any]] = []
    found = trained(TrOPD(top_k=4), log, micro_batch=micro_batch)
    rollouts = [r for batch in found.batches[0] for r in batch.rollouts]
    draws = {tuple(r.response): uniform_draws(stage().seed, 0, [r]) for r in rollouts}

    def sampled(d: Dense) -> Tensor:
        accepted = draws[tuple(d.y.tolist())] < (d.at(d.p) - d.at(d.q)).exp().clamp(max=1).detach()
        return torch.where(accepted, -d.advantage * d.at(d.q), fkl_top(d, 4))

    model = qwen3()
    dense_loss(model, sampled).backward()
    assert_same_gradients(found.gradients[0], gradients(model), 1e-6)
    assert 0 < log[0]["routed_fkl"] < 1


def test_tropd_accepts_a_token_with_probability_min_p_over_q_and_1():
    count = 20_000
    logq = torch.linspace(-3, -0.1, count, dtype=torch.float64)
    logp = logq + torch.linspace(-2, 1, count, dtype=torch.float64)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = Tokens(logq, logq, logp, logq[:, None], logp[:, None], uniform=uniform)
    routed = TrOPD().token_losses(tokens).routed
    assert routed is not None
    expected = 1 - (logp - logq).exp().clamp(max=1)
    assert float(routed.double().mean() - expected.mean()) == pytest.approx(0, abs=0.01)
    assert not routed[logp >= logq].any()


def test_draws_are_uniform_and_depend_on_seed_step_item_and_response():
    one = uniform_draws(0, 0, [rollout([3], [4, 5, 6])])
    assert torch.equal(one, uniform_draws(0, 0, [rollout([3], [4, 5, 6])]))
    others = [(1, 0, [4, 5, 6]), (0, 1, [4, 5, 6]), (0, 0, [4, 5, 7])]
    assert not any(torch.equal(one, uniform_draws(seed, step, [rollout([3], y)])) for seed, step, y in others)
    many = torch.cat([uniform_draws(0, step, [rollout([3], [4] * 50)]) for step in range(200)])
    assert float(many.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(many.min()) >= 0
    assert float(many.max()) < 1


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"training\.num_generations is 1\b.*2 or more"):
        GRPO().refuse(Training())


def test_a_group_whose_answers_are_all_alike_teaches_nothing(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.adapter.StageContext.reward", lambda *_: 1.0)
    GRPO(kl=0).train_stage(stage({"prompts_per_step": 3, "num_generations": 2}))
    assert not any(value.any() for value in recorder.made[-1].gradients[0].values())


def test_seqkd_learns_the_teachers_samples_and_asks_no_score(recorder: type[Recorder]):
    ctx = stage()
    SeqKD().train_stage(ctx)
    assert not ctx.engine.asked  # pyright: ignore[reportAttributeAccessIssue]
    assert ctx.teacher_engine.asked[0].temperature == 1.0  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    model = qwen3()
    losses = [
        -dense_logprobs(model, p + r)[len(p) - 1 : -1].gather(-1, torch.tensor(r)[:, None])[:, 0]
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    torch.cat(losses).mean().backward()
    assert_same_gradients(recorder.made[-1].gradients[0], gradients(model), 1e-6)


def test_gkd_takes_the_students_answers_in_its_share_of_steps_and_references_otherwise():
    sources = [GKD(lmbda=0.25).source(seed) for seed in range(2000)]
    assert sources.count("student") / 2000 == pytest.approx(0.25, abs=0.04)
    assert set(sources) == {"student", "data"}
    assert {GKD(lmbda=1).source(seed) for seed in range(50)} == {"student"}
    assert {GKD(lmbda=0).source(seed) for seed in range(50)} == {"data"}


class Demonstrating(SDFT):
    """Self-distillation whose demonstration is two more tokens before the prompt."""

    def teacher_prompts(self, ctx: Any, rollouts: Any) -> list[list[int]]:
        return [[20, 21, *r.example.prompt] for r in rollouts]


def test_sdft_is_reverse_kl_to_the_reference_that_sees_the_demonstration(recorder: type[Recorder]):
    trained(Demonstrating())
    model, teacher = qwen3(), local_teacher(2).model
    means: list[Tensor] = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        q = dense_logprobs(model, prompt + response)[len(prompt) - 1 : -1]
        p = dense_logprobs(teacher, [20, 21, *prompt, *response])[len(prompt) + 1 : -1].detach()
        means.append(kl(q, p).mean())
    torch.stack(means).mean().backward()
    assert_same_gradients(recorder.made[-1].gradients[0], gradients(model), 1e-6)


RATES = [(0.0, 1.0), (0.25, 1.5), (1.0, 3.0)]


def taught(cls: type[SDFT], rate: float) -> float:
    """Return the value of an average that began at 1, after an update that moved the student to 3."""
    ctx = stage()
    assert ctx.reference is not None
    for parameter in ctx.reference.model.parameters():
        parameter.fill_(1.0)
    with torch.no_grad():
        for parameter in ctx.student.parameters():
            parameter.fill_(3.0)
    cls(ema_rate=rate).after_update(ctx)
    (value,) = {float(number) for p in ctx.reference.model.parameters() for number in p.unique()}
    return value


@pytest.mark.parametrize(("rate", "expected"), RATES)
def test_sdfts_teacher_moves_towards_the_student_by_its_rate(rate: float, expected: float):
    assert taught(SDFT, rate) == expected
    assert taught(InvertedEMA, rate) != expected


def test_a_demonstration_that_does_not_fit_the_context_is_refused(monkeypatch: pytest.MonkeyPatch):
    ctx = stage()
    monkeypatch.setattr("harness.adapter.StageContext.with_demonstration", lambda *_: [1] * 121)
    with pytest.raises(ConfigError, match=r"129 tokens, .*128; shorten `shown`"):
        SDFT().teacher_prompts(ctx, [rollout([1], [2])])


LOSSES: list[LoopAdapter] = [adapter for adapter, _ in CASES.values() if isinstance(adapter, LoopAdapter)]


@pytest.mark.parametrize("adapter", LOSSES, ids=lambda a: type(a).__name__)
def test_what_an_adapter_requires_of_the_teacher_is_what_it_asks_for(adapter: LoopAdapter):
    needed, wanted = adapter.requirements.teacher, adapter.teacher_request
    assert wanted.vocabulary == (needed == "full")
    assert bool(wanted.top_k) == (needed == "top_k")
