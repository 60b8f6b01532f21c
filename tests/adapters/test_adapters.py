"""The adapters' losses: gradients equal dense float64 autograd, limits and hand-worked values hold, the loop does its part.

Numbers follow METHOD sections 1 and 2. Gradients are taken where an optimiser would find them, at the end of
`train_stage`, so that batching, weights, teacher scores and the chunked kernel are all in between.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.aopd import AOPD
from adapters.loop.divergences import top_k_forward_kl
from adapters.loop.prompts import prompt_batches
from adapters.loop.tokens import Tokens
from adapters.loop.training_loop import LoopAdapter
from adapters.none import NoUpdate
from adapters.opd import OPD
from adapters.sft import SFT
from harness.adapter import check_adapters, make_adapter, registered
from harness.config.suite import AdapterEntry, Suite
from harness.engines.hf import HFEngine
from harness.errors import ConfigError, ModelError, TaskError, TrainingError
from harness.lm.logprobs import Head, StudentForward, TeacherRequest, TeacherScores, selected_logprobs
from harness.lm.rollouts import Batch, Example, Rollout, make_batches
from harness.lmeval.library import TaskLibrary
from harness.teachers.local import LocalTeacher
from harness.teachers.score_checks import check_scores, refuse_certainty
from tests.support.models import (
    STOP,
    VOCABULARY,
    FakeTokenizer,
    ScriptedEngine,
    assert_same_gradients,
    byte_renderer,
    context,
    dense_logprobs,
    example,
    gradients,
    local_teacher,
    micro_suite,
    qwen3,
    rollout,
    write_task,
)
from tests.support.packages import declare
from tests.support.stages import PROMPTS, REDUCTIONS, RESPONSES, Recorder, in_order, trained


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


def tokens(logq: Any, logp: Any, logq_old: Any = None, top_q: Any = None, top_p: Any = None) -> Tokens:
    """Return tokens from probabilities' logarithms; the sampling policy is the current one unless `logq_old` is given."""
    q = torch.as_tensor(logq, dtype=torch.float64)
    old = q.detach() if logq_old is None else torch.as_tensor(logq_old, dtype=torch.float64)
    none = torch.zeros(len(q), 0, dtype=torch.float64)
    top = [none if t is None else torch.as_tensor(t, dtype=torch.float64) for t in (top_q, top_p)]
    return Tokens(q, old, torch.as_tensor(logp, dtype=torch.float64), top[0], top[1])


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
    with pytest.raises(ValueError, match="dual_clip bounds the clipped loss; set clip too"):
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


def test_two_updates_a_rollout_split_the_batch_and_keep_the_first_policys_log_q(recorder: type[Recorder]):
    recorder.rate = 0.05
    seen: list[Tokens] = []

    class Spy(OPD):
        def token_losses(self, tokens: Tokens) -> Any:
            seen.append(tokens)
            return super().token_losses(tokens)

    examples = [example(prompt) for prompt in PROMPTS]
    model = qwen3()
    engine = ScriptedEngine(RESPONSES)
    Spy(clip=0.2, updates_per_rollout=2).train_stage(context(model, engine, examples, {}, local_teacher()))
    (updates,) = recorder.made
    assert updates.total_updates == 2
    assert len(updates.gradients) == len(seen) == 2
    start = StudentForward(qwen3())
    for found, (batch,) in zip(seen, updates.batches, strict=True):
        before = start(batch, batch.targets[:, None]).chosen[:, 0]
        torch.testing.assert_close(found.logq_old, before.detach(), rtol=0, atol=1e-9)
        assert float(batch.weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(seen[0].logq.detach(), seen[0].logq_old)
    assert (seen[1].logq - seen[1].logq_old).abs().max() > 1e-4
    # each rollout is in exactly one of the two updates
    rows = [len(batch.input_ids) for batches in updates.batches for batch in batches]
    assert rows == [3, 3]
    assert sorted(token for found in updates.batches for b in found for token in b.targets.tolist()) == sorted(
        token for response in RESPONSES for token in response
    )


def test_updates_that_do_not_divide_the_rollouts_are_refused():
    examples = [example(prompt) for prompt in PROMPTS]
    ctx = context(qwen3(), ScriptedEngine(RESPONSES), examples, {"prompts_per_step": 5}, local_teacher())
    with pytest.raises(ConfigError, match="updates_per_rollout 2 does not divide the 5 rollouts of a step"):
        OPD(updates_per_rollout=2).train_stage(ctx)


def test_a_stage_without_training_items_is_refused():
    ctx = context(qwen3(), ScriptedEngine(RESPONSES), [], {"prompts_per_step": 2}, local_teacher())
    with pytest.raises(TaskError, match="task fake has no training items; a stage needs a `training_split`"):
        OPD().train_stage(ctx)


def test_sft_supervises_exactly_the_references_with_their_stop_token_and_asks_nobody(recorder: type[Recorder]):
    examples = [example(prompt, target) for prompt, target in zip(PROMPTS, RESPONSES, strict=True)]
    engine = ScriptedEngine([[1]])
    SFT().train_stage(context(qwen3(), engine, examples, {"num_generations": 3}))
    ((batch,),) = recorder.made[0].batches
    assert engine.prompts == []
    assert Counter(map(tuple, _responses(batch))) == Counter(map(tuple, RESPONSES))
    assert batch.weights.tolist() == pytest.approx([1 / 16] * 16)  # 3 + 2 + 1 + 5 + 1 + 4 tokens


def _responses(batch: Batch) -> list[list[int]]:
    lengths = batch.predicts.sum(1).tolist()
    flat = iter(batch.targets.tolist())
    return [list(islice(flat, int(length))) for length in lengths]


def test_references_beyond_the_budget_are_cut_and_counted_as_truncated(recorder: type[Recorder]):
    log: list[dict[str, Any]] = []
    examples = [example([3], [5, 6, 7, 8, STOP]), example([4], [9, STOP])]
    SFT().train_stage(context(qwen3(), ScriptedEngine([]), examples, {"max_new_tokens": 3}, log=log))
    ((batch,),) = recorder.made[0].batches
    assert sorted(_responses(batch)) == [[5, 6, 7], [9, STOP]]
    assert log[0]["truncated_share"] == 0.5


def test_rollouts_are_asked_with_the_stages_settings_and_a_seed_of_their_own_for_each_step(recorder: type[Recorder]):
    engine = ScriptedEngine(RESPONSES)
    training = {"steps": 2, "prompts_per_step": 2, "num_generations": 3, "temperature": 0.7, "max_new_tokens": 11}
    OPD().train_stage(context(qwen3(), engine, [example(p) for p in PROMPTS], training, local_teacher()))
    first, second = engine.asked
    assert (first.max_new_tokens, first.temperature, first.stop_ids) == (11, 0.7, (STOP,))
    assert (first.top_p, first.top_k) == (1.0, 0)  # anything else would not be a sample of the policy
    assert first.seed != second.seed
    assert len(engine.prompts) == 12
    for start in range(0, 12, 3):
        assert engine.prompts[start] == engine.prompts[start + 1] == engine.prompts[start + 2]


def batches(seed: int, items: int, size: int, count: int) -> list[list[str]]:
    ctx = context(
        None,
        ScriptedEngine([]),
        [example([1], name=str(i)) for i in range(items)],
        {"prompts_per_step": size},
        seed=seed,
    )
    return [[item.item_id for item in batch] for batch in islice(prompt_batches(ctx), count)]


def test_the_tasks_of_a_joint_stage_have_equal_shares_whatever_their_size():
    def items(task: str, count: int) -> list[Example]:
        return [replace(example([1], name=f"{task}{i}"), task=task) for i in range(count)]

    tasks: Any = {"a": None, "b": None}
    few_and_many = items("a", 3) + items("b", 50)
    ctx = replace(context(None, ScriptedEngine([]), few_and_many, {"prompts_per_step": 4}), tasks=tasks)
    batches = list(islice(prompt_batches(ctx), 3))
    assert [[item.task for item in batch] for batch in batches] == [["a", "b", "a", "b"]] * 3
    drawn = [item.item_id for batch in batches for item in batch if item.task == "a"]
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == ["a0", "a1", "a2"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_of_prompts_is_a_permutation_and_batches_depend_on_the_seed_alone(items: int, size: int, seed: int):
    count = -(-3 * items // size)
    found = batches(seed, items, size, count)
    assert all(len(batch) == size for batch in found)
    flat = [name for batch in found for name in batch]
    for epoch in range(3):
        assert sorted(flat[epoch * items : (epoch + 1) * items], key=int) == [str(i) for i in range(items)]
    assert batches(seed, items, size, count) == found


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = batches(0, 20, 20, 2)
    assert first != second
    assert batches(1, 20, 20, 1) != [first]
    assert first != [str(i) for i in range(20)]


FIELDS = {
    "step", "loss", "grad_norm", "lr", "entropy", "advantage_mean", "routed_fkl", "response_tokens_mean",
    "truncated_share", "tokens", "seconds", "warnings", "fkl_gradient_share", "top_k", "teacher_top_mass",
    "student_top_mass", "overlap", "padding_share", "pull_up", "pull_down", "reward_mean", "mismatch_mean", "mismatch_max",
    "mismatch_kl",
}  # fmt: skip


def test_the_step_log_has_every_field_with_its_right_value():
    log: list[dict[str, Any]] = []
    examples = [example(p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    engine, teacher = ScriptedEngine(in_order(RESPONSES)), local_teacher()
    ctx = context(qwen3(), engine, examples, {"steps": 2, "micro_batch": 4}, teacher, log)
    AOPD(top_k=5).train_stage(ctx)
    assert [line["step"] for line in log] == [0, 1]
    quantiles = {f"advantage_q{q}" for q in ("01", "05", "25", "50", "75", "95", "99")}
    assert set(log[0]) == FIELDS | quantiles
    assert set(log[0]["seconds"]) == {"generate", "teacher", "student", "step"}
    parts = [log[0]["seconds"][phase] for phase in ("generate", "teacher", "student")]
    assert 0 < sum(parts) <= log[0]["seconds"]["step"] + 1e-3

    model, entropies, advantages = qwen3(), list[Tensor](), list[Tensor]()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        window = slice(len(prompt) - 1, -1)
        logq = dense_logprobs(model, prompt + response)[window].detach()
        logp = dense_logprobs(teacher.model, prompt + response)[window].detach()
        chosen = torch.tensor(response)[:, None]
        entropies.append(-(logq.exp() * logq).sum(-1))
        advantages.append((logp - logq).gather(-1, chosen)[:, 0])
    advantage = torch.cat(advantages)
    first = log[0]
    assert first["entropy"] == pytest.approx(torch.cat(entropies).mean().item())
    assert first["advantage_mean"] == pytest.approx(advantage.mean().item())
    assert first["advantage_q50"] == pytest.approx(advantage.quantile(0.5).item())
    assert first["advantage_q05"] == pytest.approx(advantage.quantile(0.05).item())
    assert first["routed_fkl"] == pytest.approx((advantage <= 0).double().mean().item())
    assert 0 < first["routed_fkl"] < 1
    assert first["reward_mean"] is None
    assert first["mismatch_mean"] is None
    # responses of 3 2 1 5 1 4 tokens; [9] and [5 6 7 8] lack the stop token; prompts of 3 1 5 2 3 2 tokens
    assert first["response_tokens_mean"] == pytest.approx(16 / 6)
    assert first["truncated_share"] == pytest.approx(2 / 6)
    assert first["tokens"] == 16 + 16
    assert first["lr"] == 1e-5
    assert first["loss"] == pytest.approx(dense_loss(AOPD(top_k=5), model, teacher.model).item(), rel=1e-5)


def test_methods_without_teacher_or_gate_log_nothing_in_those_fields():
    log: list[dict[str, Any]] = []
    examples = [example(p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    SFT().train_stage(context(qwen3(), ScriptedEngine([]), examples, {}, None, log))
    OPD().train_stage(context(qwen3(), ScriptedEngine(RESPONSES), examples, {}, local_teacher(), log))
    assert log[0]["advantage_mean"] is None
    assert log[0]["advantage_q50"] is None
    assert log[0]["routed_fkl"] is log[1]["routed_fkl"] is None
    assert log[1]["advantage_mean"] is not None


@pytest.mark.parametrize("adapter", [OPD(), AOPD(top_k=5)], ids=["opd", "aopd"])
def test_distilling_on_its_own_rollouts_brings_the_student_to_the_teacher(adapter: LoopAdapter):
    model, teacher, log = qwen3(), local_teacher(), list[dict[str, Any]]()
    training = {"steps": 40, "prompts_per_step": 48, "max_new_tokens": 1, "optimizer": {"lr": 0.01}}
    ctx = context(model, HFEngine(model, FakeTokenizer()), [example(p) for p in PROMPTS], training, teacher, log)

    def reverse_kl() -> float:
        pairs = [(dense_logprobs(model, p)[-1], dense_logprobs(teacher.model, p)[-1]) for p in PROMPTS]
        return sum((q.exp() * (q - p)).sum().item() for q, p in pairs) / len(pairs)

    before = reverse_kl()
    adapter.train_stage(ctx)
    assert reverse_kl() < before / 3
    # E_q[A] = -KL(q||p), so the logged mean rises towards 0 with it
    assert log[0]["advantage_mean"] < log[-1]["advantage_mean"]


def test_no_update_leaves_the_weights_alone_and_asks_nobody():
    model, engine = qwen3(), ScriptedEngine(RESPONSES)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert NoUpdate().train_stage(context(model, engine, [example([1])])).steps == 0
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert engine.prompts == []


@pytest.mark.pitfall(
    "a teacher with a different vocabulary scores other text than the student wrote",
    area="lm-eval",
    guard="`harness/teachers/local.py` refuses such a teacher, and scores the student's exact token ids",
    evidence="the vocabularies are not compared",
)
def test_a_teacher_with_another_vocabulary_is_refused():
    with pytest.raises(ModelError, match=r"do not share a vocabulary \(25 and 24 tokens\)"):
        LocalTeacher(qwen3(25), FakeTokenizer(25), FakeTokenizer(24))


def test_a_teacher_whose_score_is_not_finite_stops_the_run():
    model = qwen3()
    model.lm_head.weight.data[3] = float("nan")
    (batch,) = make_batches([rollout([1, 2], [4, STOP])], "token_mean", None)
    scores = LocalTeacher(model, FakeTokenizer(), FakeTokenizer()).score(batch, TeacherRequest(), 1.0)
    with pytest.raises(TrainingError, match="not finite; check its weights and dtype"):
        check_scores(scores, batch, TeacherRequest())


def test_more_teacher_tokens_than_the_vocabulary_has_are_refused():
    (batch,) = make_batches([rollout([1, 2], [4, STOP])], "token_mean", None)
    with pytest.raises(TrainingError, match="top_k is 25, but the teacher's vocabulary has 24 tokens"):
        local_teacher().score(batch, TeacherRequest(top_k=25), 1.0)


def test_a_local_teacher_scores_as_its_dense_distribution_and_takes_no_gradient():
    teacher = local_teacher()
    sequence = rollout([1, 2, 3], [4, 5, STOP])
    (batch,) = make_batches([sequence], "token_mean", None)
    scores: TeacherScores = teacher.score(batch, TeacherRequest(top_k=4), 0.8)
    logp = dense_logprobs(teacher.model, sequence.prompt_and_response, 0.8)[2:-1]
    torch.testing.assert_close(scores.sampled, logp[range(3), sequence.response])
    torch.testing.assert_close(scores.top_logprobs, logp.topk(4).values)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_response_that_the_teacher_did_not_score_stops_the_step_and_short_certain_ones_do_not():
    rollouts = [rollout([1, 2], [4] * 8), rollout([1], [5] * 7), rollout([3], [6, STOP])]
    (batch,) = make_batches(rollouts, "token_mean", None)
    scores = torch.full((17,), -1e-7)
    scores[1:-1] = 0.0  # all but two tokens, among them a whole response of seven, of which a teacher may be certain
    refuse_certainty([(batch, scores)])
    scores[0] = 0.0
    with pytest.raises(TrainingError, match="to all 8 tokens of a response to item item of fake"):
        refuse_certainty([(batch, scores)])


def test_a_rewards_grader_sees_what_the_evaluations_sees_the_answer_up_to_the_first_stop_string(tmp_path: Path):
    write_task(tmp_path)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    doc = task.training_docs()[0]
    ctx = replace(context(None, ScriptedEngine([]), [example([1])]), renderer=renderer, tasks={"made_up": task})
    item = Example("made_up", "0", doc, [], [])
    assert task.generation["until"] == ["\n"]
    for answer, worth in ((doc["target"], 1.0), (f"{doc['target']}\nThe end.", 1.0), (f"no\n{doc['target']}", 0.0)):
        assert ctx.reward(Rollout(item, renderer.encode_target(answer), "stop")) == worth, answer


def test_the_shipped_adapters_are_registered():
    assert {"none", "sft", "opd", "aopd"} <= set(registered())


def entry(**fields: Any) -> AdapterEntry:
    return AdapterEntry.model_validate(fields)


def refusal(name: str, **fields: Any) -> str:
    with pytest.raises(ConfigError) as error:
        make_adapter(name, entry(**fields))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_adapter_is_refused_with_the_nearest_name():
    assert refusal("aodp").startswith("adapters.aodp: there is no adapter 'aodp'; did you mean 'aopd'? registered are ")


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("adapters.opd:Opd", "'Opd'"),
        ("pathlib:Path", "is not a subclass of Adapter"),
    ],
)
def test_an_entry_point_that_is_not_an_adapter_is_refused_by_name(
    value: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    declare("broken", {"harness.adapters": {"gone": value}}, tmp_path, monkeypatch)
    found = refusal("gone")
    assert found.startswith(f"adapters.gone: the entry point gone = {value} ")
    assert cause in found


def test_an_entry_may_have_a_name_of_its_own():
    made = make_adapter("aopd-official", entry(adapter="aopd", options={"gate": "prob_diff", "threshold": 0.2}))
    assert made == AOPD(gate="prob_diff", threshold=0.2)


def test_unknown_and_wrong_options_are_refused_in_one_sentence_with_their_key():
    unknown = refusal("aopd", options={"treshold": 0.1})
    assert unknown.startswith("adapters.aopd.options.treshold: unknown key; did you mean 'threshold'? expected one of")
    wrong = refusal("aopd", options={"gate": "logratio"})
    assert wrong == "adapters.aopd.options.gate: found 'logratio'; input should be 'log_ratio' or 'prob_diff'"
    assert "set clip too" in refusal("opd", options={"dual_clip": 3.0})


@pytest.mark.parametrize(("name", "needs"), [("opd", "sampled"), ("aopd", "top_k")])
def test_a_method_that_needs_a_teacher_is_refused_where_the_suite_has_none(name: str, needs: str):
    raw = {**micro_suite(), "teacher": None, "adapters": {name: {}}}
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    with pytest.raises(ConfigError) as error:
        check_adapters(Suite.model_validate(raw))
    assert str(error.value) == (
        f"adapters.{name}: needs a teacher ({needs}), but stages tiny_weather, tiny_currency have none; "
        "name one under `teacher`"
    )
    without = Suite.model_validate({**raw, "adapters": {"sft": {}, "none": {}}})
    assert set(check_adapters(without)) == {"sft", "none"}
