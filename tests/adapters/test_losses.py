"""The adapters' losses: gradients equal dense float64 autograd, limits and hand-worked values hold.

Numbers follow METHOD sections 1 and 2. Gradients are taken where an optimiser would find them, at the end of
`train_stage`, so that batching, weights, teacher scores and the chunked kernel are all in between.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.aopd import AOPD
from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.tokens import Tokens
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from adapters.sft import SFT
from harness.lm.logprobs import Head, selected_logprobs
from harness.teachers.local import LocalTeacher
from tests.support.models import (
    VOCABULARY,
    FakeTokenizer,
    ScriptedEngine,
    assert_same_gradients,
    context,
    dense_logprobs,
    example,
    gradients,
    local_teacher,
    qwen3,
)
from tests.support.stages import PROMPTS, REDUCTIONS, RESPONSES, Recorder, dense_loss, tokens, trained

GRADIENT_CASES: list[tuple[str, LoopAdapter]] = [
    (f"{reduction}-{name}", make(reduction))
    for reduction in REDUCTIONS
    for name, make in {
        "opd": lambda r: OPD(reduction=r),
        "opd weight 1.25": lambda r: OPD(reduction=r, weight=1.25),
        "opd clip": lambda r: OPD(reduction=r, clip=0.2, dual_clip=3.0),
        "log_ratio": lambda r: AOPD(reduction=r, top_k=5),
        "log_ratio 0.5": lambda r: AOPD(reduction=r, top_k=5, threshold=0.5),
        "log_ratio all PG": lambda r: AOPD(reduction=r, top_k=5, threshold=math.inf),
        "log_ratio all FKL": lambda r: AOPD(reduction=r, top_k=5, threshold=-math.inf),
        "prob_diff": lambda r: AOPD(reduction=r, top_k=5, gate="prob_diff"),
        "prob_diff 0.2": lambda r: AOPD(reduction=r, top_k=VOCABULARY, gate="prob_diff", threshold=0.2),
        "prob_diff all PG": lambda r: AOPD(reduction=r, top_k=5, gate="prob_diff", threshold=1.0),
        "prob_diff all FKL": lambda r: AOPD(reduction=r, top_k=5, gate="prob_diff", threshold=-1.0),
    }.items()
]


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("adapter", [case for _, case in GRADIENT_CASES], ids=[name for name, _ in GRADIENT_CASES])
def test_gradients_equal_autograd_on_dense_float64_logits(
    adapter: Any, micro_batch: int | None, recorder: type[Recorder]
):
    found = trained(adapter, micro_batch=micro_batch)
    model = qwen3()
    expected = dense_loss(adapter, model, local_teacher().model)
    expected.backward()
    assert_same_gradients(found.gradients[0], gradients(model), 1e-6)
    if getattr(adapter, "clip", None) is None:
        assert found.losses[0] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("adapter", [OPD(), AOPD(top_k=5)], ids=["opd", "aopd"])
def test_the_temperature_applies_to_student_and_teacher(adapter: Any, recorder: type[Recorder]):
    found = trained(adapter, temperature=0.6)
    model = qwen3()
    dense_loss(adapter, model, local_teacher().model, 0.6).backward()
    assert_same_gradients(found.gradients[0], gradients(model), 1e-6)


def test_sft_gradients_are_those_of_cross_entropy_at_temperature_one(recorder: type[Recorder]):
    found = trained(SFT(), temperature=0.6)
    model = qwen3()
    losses = [
        -dense_logprobs(model, p + r)[len(p) - 1 : -1].gather(-1, torch.tensor(r)[:, None])[:, 0]
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    torch.cat(losses).mean().backward()
    assert_same_gradients(found.gradients[0], gradients(model), 1e-6)


def test_the_advantage_is_the_log_ratio_of_the_policy_that_sampled_and_carries_no_gradient():
    logq = torch.log(torch.tensor([0.5, 0.25], dtype=torch.float64)).requires_grad_()
    old = torch.log(torch.tensor([0.125, 0.5], dtype=torch.float64)).requires_grad_()
    found = tokens(logq, torch.log(torch.tensor([0.25, 0.5])), logq_old=old).advantage
    # log 0.25/0.125 = log 2, log 0.5/0.5 = 0
    assert found.tolist() == pytest.approx([math.log(2), 0], abs=1e-7)
    assert not found.requires_grad


def test_opd_is_minus_the_advantage_times_log_q_by_hand():
    loss = OPD(weight=1.25).token_losses(tokens([math.log(0.5)], [math.log(0.25)])).losses
    # A = log 0.25/0.5 = -0.693147; -1.25 * -0.693147 * log 0.5 = 1.25 * 0.693147 * -0.693147
    assert loss.item() == pytest.approx(-1.25 * 0.693147**2, rel=1e-5)


CLIPPED = [
    # ratio, advantage, with clip 0.2, with dual clip 3 as well
    (1.5, 1.0, -1.2, -1.2),  # -min(1.5, 1.2)
    (0.5, 1.0, -0.5, -0.5),  # -min(0.5, 0.8)
    (1.5, -1.0, 1.5, 1.5),  # -min(-1.5, -1.2)
    (0.5, -1.0, 0.8, 0.8),  # -min(-0.5, -0.8)
    (4.0, -2.0, 8.0, 6.0),  # -min(-8, -2.4) = 8, dual at most 3 * 2
    (4.0, 2.0, -2.4, -2.4),  # -min(8, 2.4); the dual clip is for negative advantages only
]


@pytest.mark.parametrize(("ratio", "advantage", "clipped", "dual"), CLIPPED)
def test_clipped_losses_have_their_hand_worked_values(ratio: float, advantage: float, clipped: float, dual: float):
    old = math.log(0.1)
    one = tokens([old + math.log(ratio)], [old + advantage], logq_old=[old])
    assert OPD(clip=0.2).policy_gradient(one).item() == pytest.approx(clipped)
    assert OPD(clip=0.2, dual_clip=3.0).policy_gradient(one).item() == pytest.approx(dual)
    assert OPD(clip=0.2, dual_clip=3.0, weight=1.25).policy_gradient(one).item() == pytest.approx(1.25 * dual)


def test_a_clipped_token_has_no_gradient_left():
    logq = torch.tensor([math.log(0.15)], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(OPD(clip=0.2).policy_gradient(tokens(logq, [0.0], [math.log(0.1)])).sum(), logq)
    assert gradient.item() == 0


@given(st.floats(-8, -0.01), st.floats(-8, -0.01))
def test_at_ratio_one_the_clipped_gradient_is_the_plain_one(logq: float, logp: float):
    slopes: list[float] = []
    for adapter in (OPD(), OPD(clip=0.2), OPD(clip=0.2, dual_clip=3.0)):
        leaf = torch.tensor([logq], dtype=torch.float64, requires_grad=True)
        adapter.policy_gradient(tokens(leaf, [logp])).sum().backward()
        assert leaf.grad is not None
        slopes.append(leaf.grad.item())
    assert slopes[1:] == pytest.approx([slopes[0]] * 2)


def test_dual_clip_without_clip_is_refused():
    with pytest.raises(ValueError, match=r"dual_clip .*set clip too"):
        OPD(dual_clip=3.0)


def test_advantage_zero_goes_to_forward_kl_by_log_ratio_and_to_the_policy_gradient_by_prob_diff():
    same = tokens([-1.0], [-1.0])
    assert AOPD().routed(same).tolist() == [True]
    assert AOPD(gate="prob_diff").routed(same).tolist() == [False]


def test_gates_route_by_their_own_measure():
    # q and p: 0.5 0.25 (ratio 2, difference 0.25); 0.02 0.01 (ratio 2, difference 0.01); 0.25 0.5
    found = tokens(torch.tensor([0.5, 0.02, 0.25]).log(), torch.tensor([0.25, 0.01, 0.5]).log())
    assert AOPD().routed(found).tolist() == [True, True, False]
    assert AOPD(threshold=0.69).routed(found).tolist() == [True, True, False]
    assert AOPD(threshold=0.70).routed(found).tolist() == [False, False, False]
    assert AOPD(threshold=-0.70).routed(found).tolist() == [True, True, True]
    assert AOPD(gate="prob_diff").routed(found).tolist() == [True, True, False]
    assert AOPD(gate="prob_diff", threshold=0.2).routed(found).tolist() == [True, False, False]
    assert AOPD(gate="prob_diff", threshold=-0.3).routed(found).tolist() == [True, True, True]


def test_the_gate_looks_at_the_policy_that_sampled_not_at_the_one_in_training():
    # sampled at q 0.5 where p is 0.25; training has since taken q down to 0.1
    later = tokens([math.log(0.1)], [math.log(0.25)], logq_old=[math.log(0.5)])
    assert AOPD().routed(later).tolist() == [True]
    assert AOPD(gate="prob_diff").routed(later).tolist() == [True]


OPTIONS: list[dict[str, Any]] = [{}, {"weight": 1.25}, {"clip": 0.2, "dual_clip": 3.0, "weight": 1.25}]


LOGPROBS = st.lists(st.tuples(st.floats(-6, -0.01), st.floats(-6, -0.01)), min_size=1, max_size=6)


@given(LOGPROBS, st.sampled_from(["log_ratio", "prob_diff"]), st.sampled_from(OPTIONS))
def test_at_its_limits_aopd_is_pure_opd_and_pure_forward_kl(
    pairs: list[tuple[float, float]], gate: Any, options: dict[str, Any]
):
    q, p = zip(*pairs, strict=True)
    old = [value - 0.7 for value in q]
    found = tokens(q, p, logq_old=old, top_q=[[-1.0, -2.0]] * len(q), top_p=[[-0.5, -3.0]] * len(q))
    limit = 1.0 if gate == "prob_diff" else math.inf
    all_opd = AOPD(gate=gate, threshold=limit, **options).token_losses(found)
    all_fkl = AOPD(gate=gate, threshold=-limit, **options).token_losses(found)
    assert torch.equal(all_opd.losses, OPD(**options).token_losses(found).losses)
    assert torch.equal(all_fkl.losses, top_k_forward_kl(found))
    assert all_opd.routed is not None
    assert all_fkl.routed is not None
    assert not all_opd.routed.any()
    assert all_fkl.routed.all()


def test_top_k_forward_kl_may_be_negative_and_still_has_its_gradient():
    # Teacher 0.5 and 0.2 on its top two, student 0.6 and 0.3 there:
    # 0.5 log(0.5/0.6) + 0.2 log(0.2/0.3) = -0.0911608 - 0.0810930 = -0.1722538
    top_q = torch.log(torch.tensor([[0.6, 0.3]], dtype=torch.float64)).requires_grad_()
    loss = top_k_forward_kl(tokens([-1.0], [-1.0], top_q=top_q, top_p=[[math.log(0.5), math.log(0.2)]]))
    assert loss.item() == pytest.approx(-0.1722538, abs=1e-7)
    loss.sum().backward()
    assert top_q.grad is not None
    assert top_q.grad.tolist()[0] == pytest.approx([-0.5, -0.2])


VOC = 6


Q = torch.randn(VOC, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


P = torch.randn(VOC, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(-1)


def at_one_position(adapter: LoopAdapter, logits: Tensor, logp: Tensor, sampled: int, top_k: int = VOC) -> Tensor:
    """Return the loss of one sampled token, with the student's logits as the leaf."""
    top = logp.topk(top_k)
    ids = torch.cat([torch.tensor([sampled]), top.indices])[None]
    chosen = selected_logprobs(logits[None], Head(torch.eye(VOC, dtype=torch.float64)), ids).chosen
    found = Tokens(chosen[:, 0], chosen[:, 0].detach(), logp[sampled][None], chosen[:, 1:], top.values[None])
    return adapter.token_losses(found).losses[0]


def slope(adapter: LoopAdapter, logits: Tensor, logp: Tensor, sampled: int, top_k: int = VOC) -> Tensor:
    """Return d loss / d logits, (V,)."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(at_one_position(adapter, leaf, logp, sampled, top_k), leaf)
    return gradient


@pytest.mark.parametrize("sampled", range(VOC))
def test_opd_pulls_each_logit_by_a_times_q_minus_one_hot(sampled: int):
    q = Q.softmax(-1)
    advantage = P[sampled] - q[sampled].log()
    expected = advantage * (q - nn.functional.one_hot(torch.tensor(sampled), VOC))
    torch.testing.assert_close(slope(OPD(), Q, P, sampled), expected)


@pytest.mark.parametrize("top_k", [1, 3, VOC])
def test_forward_kl_pulls_each_logit_by_pk_q_minus_p_on_the_top_k(top_k: int):
    p, ids = P.exp(), P.topk(top_k).indices
    on_top = torch.zeros(VOC, dtype=torch.float64).scatter(0, ids, p[ids])
    expected = on_top.sum() * Q.softmax(-1) - on_top
    adapter = AOPD(top_k=top_k, threshold=-math.inf)
    torch.testing.assert_close(slope(adapter, Q, P, 0, top_k), expected)


def test_sft_pulls_each_logit_by_q_minus_one_hot():
    expected = Q.softmax(-1) - nn.functional.one_hot(torch.tensor(2), VOC)
    torch.testing.assert_close(slope(SFT(), Q, P, 2), expected)


def expected_slope(adapter: LoopAdapter, logits: Tensor, logp: Tensor) -> Tensor:
    """Return the expectation over tokens drawn from the student, by going through the vocabulary."""
    return torch.stack([q * slope(adapter, logits, logp, y) for y, q in enumerate(logits.softmax(-1))]).sum(0)


def test_opd_in_expectation_follows_the_gradient_of_the_reverse_kl():
    leaf = Q.clone().requires_grad_()
    logq = leaf.log_softmax(-1)
    (reverse_kl,) = torch.autograd.grad((logq.exp() * (logq - P)).sum(), leaf)
    torch.testing.assert_close(expected_slope(OPD(), Q, P), reverse_kl)


def test_a_teacher_that_is_the_student_gives_no_loss_and_no_pull():
    same = Q.log_softmax(-1)
    for adapter in (OPD(), AOPD(top_k=VOC), AOPD(top_k=VOC, gate="prob_diff")):
        torch.testing.assert_close(expected_slope(adapter, Q, same), torch.zeros_like(Q))
    assert at_one_position(AOPD(top_k=VOC), Q, same, 3).item() == pytest.approx(0, abs=1e-12)


def test_teacher_and_student_with_the_same_weights_have_advantage_zero_through_the_whole_loop(recorder: type[Recorder]):
    examples = [example(prompt) for prompt in PROMPTS]
    teacher = LocalTeacher(qwen3(), FakeTokenizer(), FakeTokenizer())
    log: list[dict[str, Any]] = []
    AOPD(top_k=VOCABULARY).train_stage(context(qwen3(), ScriptedEngine(RESPONSES), examples, {}, teacher, log))
    assert log[0]["advantage_mean"] == pytest.approx(0, abs=1e-12)
    assert log[0]["loss"] == pytest.approx(0, abs=1e-12)


LOGITS = st.lists(st.floats(-6, 6), min_size=VOC, max_size=VOC).map(lambda v: torch.tensor(v, dtype=torch.float64))


@settings(max_examples=50)
@given(LOGITS, LOGITS)
def test_advantages_have_exponential_mean_one_and_mean_minus_the_reverse_kl(student: Tensor, teacher: Tensor):
    logq, logp = student.log_softmax(-1), teacher.log_softmax(-1)
    advantage = tokens(logq, logp).advantage
    assert (logq.exp() * advantage.exp()).sum().item() == pytest.approx(1)
    reverse_kl = torch.nn.functional.kl_div(logp, logq, reduction="sum", log_target=True)
    assert (logq.exp() * advantage).sum().item() == pytest.approx(-reverse_kl.item(), abs=1e-9)


def pull_on_the_mode(adapter: LoopAdapter, q: float, p: float) -> float:
    """Return the expected ascent on the mode's logit with two tokens."""
    logits = torch.tensor([math.log(q / (1 - q)), 0.0], dtype=torch.float64)
    logp = torch.tensor([p, 1 - p], dtype=torch.float64).log()
    total = 0.0
    for sampled, share in enumerate((q, 1 - q)):
        leaf = logits.clone().requires_grad_()
        top = logp.topk(2)
        ids = torch.cat([torch.tensor([sampled]), top.indices])[None]
        chosen = selected_logprobs(leaf[None], Head(torch.eye(2, dtype=torch.float64)), ids).chosen
        found = Tokens(chosen[:, 0], chosen[:, 0].detach(), logp[sampled][None], chosen[:, 1:], top.values[None])
        (gradient,) = torch.autograd.grad(adapter.token_losses(found).losses.sum(), leaf)
        total -= share * gradient[0].item()
    return total


def test_aopd_pulls_down_harder_than_up_at_confident_positions():
    up, down = pull_on_the_mode(AOPD(top_k=2), 0.985, 0.99), -pull_on_the_mode(AOPD(top_k=2), 0.995, 0.99)
    # METHOD section 2: 0.00015 up, 0.0084 down, a factor 56; OPD has 0.0061 and 0.0035.
    assert up == pytest.approx(0.00015, abs=0.00001)
    assert down == pytest.approx(0.0084, abs=0.00005)
    assert pull_on_the_mode(OPD(), 0.985, 0.99) == pytest.approx(0.0061, abs=0.00005)
    assert -pull_on_the_mode(OPD(), 0.995, 0.99) == pytest.approx(0.0035, abs=0.00005)
    # closed forms: q (1-q) log(p/q) + (1-q)(p-q) going up; q (p-q) - q (1-q) log((1-p)/(1-q)) going down
    assert up == pytest.approx(0.985 * 0.015 * math.log(0.99 / 0.985) + 0.015 * 0.005)
    assert -down == pytest.approx(0.995 * -0.005 - 0.995 * 0.005 * math.log(0.01 / 0.005))
