"""Wrappers against forgetting: what they change, that they compose, and which compositions are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from adapters.loop.prompts import prompt_batches, spread
from adapters.opd import OPD
from adapters.wrappers.ewc import EWC, fisher
from adapters.wrappers.kl_to_start import KLToStart
from adapters.wrappers.lora import LoRA
from adapters.wrappers.replay import Replay
from adapters.wrappers.wrapper import Wrapper
from harness.adapter import Requirements, StageContext, make_adapter
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError
from harness.lm.rollouts import Example
from tests.support.models import FakeTask, assert_same_gradients, dense_logprobs, gradients, qwen3
from tests.support.stages import Recorder, stage, trained


def wrapped(name: str, of: Any, **options: Any) -> Any:
    """Return a wrapper as a suite's entry makes it."""
    return make_adapter(name, AdapterEntry(options={"of": of, **options}))


def item(task: str, number: int) -> Example:
    return Example(task, f"{task}-{number}", {}, [3, number], [4, 2])


def with_past(ctx: StageContext, *tasks: str) -> StageContext:
    """Return the stage with three items of each of some earlier tasks."""
    fakes: dict[str, Any] = {task: FakeTask(task) for task in tasks}
    return replace(ctx, past_tasks=fakes, past=[item(task, 5 + i) for task in tasks for i in range(3)])


def drawn(ctx: StageContext, steps: int) -> Counter[str]:
    batches = islice(prompt_batches(ctx), steps)
    return Counter(example.task for batch in batches for example in batch)


def test_replay_draws_its_share_of_prompts_from_earlier_tasks_in_equal_parts():
    ctx = wrapped("replay", "opd", share=0.25).changed(with_past(stage({"prompts_per_step": 8}), "a", "b"))
    assert drawn(ctx, 10) == {"fake": 60, "a": 10, "b": 10}


def test_every_epoch_of_a_replayed_task_holds_each_item_once():
    ctx = wrapped("replay", "opd", share=0.5).changed(with_past(stage({"prompts_per_step": 6}), "a"))
    names = [e.item_id for batch in islice(prompt_batches(ctx), 8) for e in batch if e.task == "a"]
    epochs = [names[start : start + 3] for start in range(0, 24, 3)]
    assert [sorted(epoch) for epoch in epochs] == [["a-5", "a-6", "a-7"]] * 8


def test_the_first_stage_has_nothing_to_replay():
    ctx = stage()
    assert wrapped("replay", "opd").changed(ctx) is ctx


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_all_is_refused(share: float):
    with pytest.raises(ConfigError, match=r"adapters.replay.options.share: found"):
        wrapped("replay", "opd", share=share)


def test_shares_are_spread_evenly_and_equal_shares_are_turns():
    assert list(islice(spread({"a": 1, "b": 1, "c": 1}), 6)) == ["a", "b", "c", "a", "b", "c"]
    names = list(islice(spread({"a": 0.75, "b": 0.25}), 400))
    assert all(abs(names[:n].count("b") - 0.25 * n) < 1 for n in range(1, 400))
    assert set(islice(spread({"a": 1, "b": 0}), 50)) == {"a"}


def test_fisher_is_the_mean_of_squared_gradients_of_the_references_log_likelihood():
    ctx = with_past(stage(), "a")
    found = fisher(ctx, ctx.past)
    model = qwen3()
    squares: dict[str, Tensor] = {}
    for example in ctx.past:
        model.zero_grad()
        rows = dense_logprobs(model, example.prompt + example.target)[1:-1]
        rows.gather(-1, torch.tensor(example.target)[:, None]).sum().backward()
        squares = {n: squares.get(n, 0) + g**2 for n, g in gradients(model).items()}
    assert_same_gradients(
        {n.removeprefix("model."): f for n, (f, _) in found.items()},
        {n: s / 3 for n, s in squares.items()},
        1e-6,
    )
    assert all(torch.equal(anchor, p) for (_, anchor), p in zip(found.values(), ctx.student.parameters(), strict=True))


def test_fisher_reads_no_more_of_a_reference_than_a_stage_trains_on():
    long = [Example("a", "long", {}, [3, 4], [5, 6, 7, 8, 2])]
    cut = [Example("a", "cut", {}, [3, 4], [5, 6])]
    found, expected = (fisher(stage({"max_new_tokens": 2}), items) for items in (long, cut))
    assert all(torch.equal(found[name][0], expected[name][0]) for name in expected)
    whole = fisher(stage({"max_new_tokens": 8}), long)
    assert not all(torch.equal(whole[name][0], expected[name][0]) for name in expected)


def test_ewcs_penalty_is_half_lambda_times_importance_times_the_squared_move():
    ctx = stage()
    ewc: EWC = wrapped("ewc", "opd", strength=10)
    importance = {n: (torch.full_like(p, 2.0), p.detach() - 0.5) for n, p in ctx.student.named_parameters()}
    count = sum(p.numel() for p in ctx.student.parameters())
    penalty = ewc.penalty(ctx.student, importance)
    assert penalty.item() == pytest.approx(0.5 * 10 * 2.0 * 0.25 * count)
    penalty.backward()
    # lambda F (theta - theta*) = 10 * 2 * 0.5
    assert all(
        bool(torch.allclose(p.grad, torch.tensor(10.0).double()))
        for p in ctx.student.parameters()
        if p.grad is not None
    )


def test_ewc_adds_nothing_in_the_first_stage_and_its_penalty_once_an_update(recorder: type[Recorder]):
    plain = trained(OPD()).losses
    assert trained(wrapped("ewc", "opd")).losses == plain
    ctx = with_past(stage({"micro_batch": 2}), "a")
    changed = wrapped("ewc", "opd").changed(ctx)
    assert len(changed.penalties.weight) == 1
    assert changed.penalties.weight[0](changed.student).item() == 0


def test_penalties_of_nested_wrappers_add_up():
    ctx = with_past(stage(), "a")
    both: Wrapper = wrapped("kl_to_start", {"adapter": "ewc", "options": {"of": "opd"}})
    assert isinstance(both.inner, EWC)
    inside = both.inner.changed(both.changed(ctx)).penalties
    assert (len(inside.token), len(inside.weight)) == (1, 1)
    assert both.requirements == Requirements("sampled", reference=True)


def test_lora_trains_factors_alone_and_leaves_the_plain_architecture(recorder: type[Recorder]):
    recorder.rate = 0.5
    ctx = stage()
    before = {n: p.detach().clone() for n, p in ctx.student.model.named_parameters()}
    LoRA.model_validate({"of": "opd", "rank": 2}).train_stage(ctx)
    assert {n.rsplit(".", 2)[-2] for n, g in recorder.made[-1].gradients[0].items() if g.any()} == {"default"}
    after = dict(ctx.student.model.named_parameters())
    assert after.keys() == before.keys()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert all("proj" in name for name in moved)
    assert all(p.requires_grad for p in after.values())


def test_under_lora_the_engine_generates_with_the_factors():
    ctx = stage()
    seen: list[bool] = []

    class Looking:
        def generate(self, prompts: Any, sampling: Any) -> Any:
            seen.append(any("lora" in n for n, _ in ctx.student.model.named_parameters()))
            return ctx.engine.generate(prompts, sampling)

    LoRA.model_validate({"of": "opd"}).train_stage(replace(ctx, engine=Looking()))
    assert seen == [True]


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("replay", "opt", r"adapters\.of: .*'opt'; .*'opd'"),
        (
            "replay",
            {"adapter": "aopd", "options": {"topk": 3}},
            r"adapters\.of\.options\.topk: .*'top_k'",
        ),
        ("ewc", "none", "'none' has its own loss"),
        ("kl_to_start", "none", "'none' has its own loss"),
        ("ewc", {"adapter": "lora", "options": {"of": "opd"}}, "'lora' trains parameters"),
        (
            "lora",
            {"adapter": "external", "options": {"command": ["x", "{output}"]}},
            "'external' with these options needs",
        ),
        ("lora", "sdft", "'sdft' .*needs the model's own weights"),
        ("lora", {"adapter": "replay", "options": {"of": "sdft"}}, "'replay' .*needs the model's own"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_when_the_suite_is_read(name: str, of: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        wrapped(name, of)


def test_lora_goes_around_a_trainer_that_keeps_its_hands_off_whole_weights():
    assert wrapped("lora", {"adapter": "sdft", "options": {"ema_rate": 0}}).requirements.reference
    assert wrapped("lora", {"adapter": "ewc", "options": {"of": "opd"}}).capabilities.replaces_weights


@pytest.mark.parametrize(
    ("name", "options", "sources"),
    [
        ("opd", {}, {"student"}),
        ("sft", {}, {"data"}),
        ("seqkd", {}, {"teacher"}),
        ("gkd", {}, {"student", "data"}),
        ("gkd", {"lmbda": 0}, {"data"}),
        ("gkd", {"lmbda": 1}, {"student"}),
        ("none", {}, set()),
        ("external", {"command": ["x", "{output}"], "trains_on": ["student"]}, {"student"}),
        ("trl", {}, {"student"}),
        ("replay", {"of": "sft"}, {"data"}),
        ("lora", {"of": {"adapter": "replay", "options": {"of": "seqkd"}}}, {"teacher"}),
    ],
)
def test_an_adapter_says_whose_responses_it_trains_on(name: str, options: dict[str, Any], sources: set[str]):
    assert make_adapter(name, AdapterEntry(options=options)).capabilities.trains_on == sources


def test_a_wrapper_requires_and_refuses_what_its_inner_adapter_does():
    assert wrapped("replay", "gkd").requirements == Requirements("full")
    assert wrapped("lora", "sft").requirements == Requirements("none")
    with pytest.raises(ConfigError, match="num_generations is 1"):
        wrapped("replay", "grpo").refuse(stage().training)


def test_wrappers_name_their_inner_trainer():
    with pytest.raises(ValidationError, match="of"):
        Replay.model_validate({})
    assert KLToStart.model_validate({"of": "aopd"}).of.adapter == "aopd"
