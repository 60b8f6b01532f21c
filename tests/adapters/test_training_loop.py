"""The loop that all adapters share: how rollouts become batches and updates, which prompts are drawn, what is logged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.aopd import AOPD
from adapters.loop.prompts import prompt_batches
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import LoopAdapter
from adapters.none import NoUpdate
from adapters.opd import OPD
from adapters.sft import SFT
from harness.adapter import Needs
from harness.engines.hf import HFEngine
from harness.errors import ConfigError, TaskError, TrainingError
from harness.lm.logprobs import StudentForward
from harness.lm.rollouts import Batch, Example, Rollout
from harness.lmeval.library import TaskLibrary
from tests.support.models import (
    STOP,
    FakeTokenizer,
    ScriptedEngine,
    byte_renderer,
    context,
    dense_logprobs,
    example,
    local_teacher,
    qwen3,
    write_task,
)
from tests.support.stages import PROMPTS, RESPONSES, Recorder, dense_loss, in_order, stage


class Averages(OPD):
    """Returns one loss for the batch."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        return TokenLosses(super().token_losses(tokens).losses.mean())


class Bare(OPD):
    """Returns the losses as they are."""

    def token_losses(self, tokens: Tokens) -> Any:
        return super().token_losses(tokens).losses


class Unscored(OPD):
    """Uses the advantage and asks no teacher for it."""

    teacher_needs: ClassVar[Needs] = "none"


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        (
            Averages(),
            r"Averages\.token_losses .*shape \(\), expected \(\d+,\)",
        ),
        (Bare(), r"Bare\.token_losses .*Tensor, expected TokenLosses"),
        (Unscored(), "no teacher scores .*`teacher_needs`"),
    ],
    ids=["average", "tensor", "unscored"],
)
def test_a_loss_of_the_wrong_kind_is_refused_before_the_weights_change(adapter: LoopAdapter, sentence: str):
    ctx = stage()
    before = [parameter.clone() for parameter in ctx.student.parameters()]
    with pytest.raises(TrainingError, match=sentence):
        adapter.train_stage(ctx)
    assert all(torch.equal(p, b) for p, b in zip(ctx.student.parameters(), before, strict=True))


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
    with pytest.raises(ConfigError, match=r"updates_per_rollout 2 .*divide .*5 rollouts"):
        OPD(updates_per_rollout=2).train_stage(ctx)


def test_a_stage_without_training_items_is_refused():
    ctx = context(qwen3(), ScriptedEngine(RESPONSES), [], {"prompts_per_step": 2}, local_teacher())
    with pytest.raises(TaskError, match=r"task fake .*`training_split`"):
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
    "mismatch_kl", "teacher_entropy", "teacher_agreement", "teacher_neginf_share",
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

    model, entropies, advantages, firsts = qwen3(), list[Tensor](), list[Tensor](), list[Tensor]()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        window = slice(len(prompt) - 1, -1)
        logq = dense_logprobs(model, prompt + response)[window].detach()
        logp = dense_logprobs(teacher.model, prompt + response)[window].detach()
        chosen = torch.tensor(response)[:, None]
        entropies.append(-(logq.exp() * logq).sum(-1))
        advantages.append((logp - logq).gather(-1, chosen)[:, 0])
        firsts.append(logp.argmax(-1) == chosen[:, 0])
    advantage = torch.cat(advantages)
    first = log[0]
    assert first["entropy"] == pytest.approx(torch.cat(entropies).mean().item())
    assert first["advantage_mean"] == pytest.approx(advantage.mean().item())
    assert first["advantage_q50"] == pytest.approx(advantage.quantile(0.5).item())
    assert first["advantage_q05"] == pytest.approx(advantage.quantile(0.05).item())
    assert first["routed_fkl"] == pytest.approx((advantage <= 0).double().mean().item())
    assert 0 < first["routed_fkl"] < 1
    assert first["teacher_agreement"] == pytest.approx(torch.cat(firsts).double().mean().item())
    assert first["teacher_neginf_share"] == 0.0
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


def test_a_rewards_grader_sees_what_the_evaluations_sees_the_answer_up_to_the_first_stop_string(tmp_path: Path):
    write_task(tmp_path)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    doc = task.training_docs()[0]
    ctx = replace(context(None, ScriptedEngine([]), [example([1])]), renderer=renderer, tasks={"made_up": task})
    item = Example("made_up", "0", doc, [], [])
    assert task.generation["until"] == ["\n"]
    for answer, worth in ((doc["target"], 1.0), (f"{doc['target']}\nThe end.", 1.0), (f"no\n{doc['target']}", 0.0)):
        assert ctx.reward(Rollout(item, renderer.encode_targets([answer], [""])[0], "stop")) == worth, answer
