"""Dropout in training: off where log-probabilities of rollouts are compared, so that a student equals its own copy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from adapters.aopd import AOPD
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from adapters.sft import SFT
from harness.adapter import StageContext, make_adapter
from harness.config.suite import AdapterEntry
from harness.teachers.local import LocalTeacher
from tests.support.models import STOP, VOCABULARY, FakeTokenizer, ScriptedEngine, context, example, qwen3
from tests.support.stages import PROMPTS, RESPONSES, in_order, stage

IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": STOP, "eos_token_id": STOP, "pad_token_id": STOP}


def gpt2() -> Any:
    """Return a model whose dropout is modules."""
    config = GPT2Config(
        **IDS, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5
    )
    return GPT2LMHeadModel(config)


def opt() -> Any:
    """Return a model whose dropout is functions that look at `training`."""
    config = OPTConfig(
        **IDS, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    return OPTForCausalLM(config)


def step_of(model: Any, adapter: LoopAdapter) -> dict[str, Any]:
    """Return the log line of one step of a student that is taught by its own copy."""
    tokenizer = FakeTokenizer(VOCABULARY)
    teacher = LocalTeacher(copy.deepcopy(model).eval(), tokenizer, tokenizer)
    examples = [example(prompt, target) for prompt, target in zip(PROMPTS, RESPONSES, strict=True)]
    log: list[dict[str, Any]] = []
    adapter.train_stage(context(model, ScriptedEngine(in_order(RESPONSES)), examples, {}, teacher, log))
    return log[0]


@pytest.mark.parametrize("make", [gpt2, opt])
def test_a_student_that_is_its_teacher_has_no_advantage(make: Any):
    torch.manual_seed(0)
    line = step_of(make(), OPD())
    assert line["advantage_q01"] == pytest.approx(0, abs=1e-4)
    assert line["advantage_q99"] == pytest.approx(0, abs=1e-4)
    assert line["grad_norm"] == pytest.approx(0, abs=1e-2)


def test_with_dropout_the_student_is_another_policy():
    torch.manual_seed(0)
    line = step_of(gpt2(), AOPD(top_k=4, disable_dropout=False))
    assert line["advantage_q99"] - line["advantage_q01"] > 0.1


def test_dropout_stays_off_after_an_engine_has_set_the_model_to_training():
    torch.manual_seed(0)
    model = gpt2()
    model.train()
    seen: list[bool] = []

    class Looking(OPD):
        def after_update(self, ctx: StageContext) -> None:
            seen.append(any(m.training for m in ctx.student.modules()))

    step_of(model, Looking())
    assert seen == [False]


def test_the_dropout_of_low_rank_factors_is_an_option_of_its_own(monkeypatch: pytest.MonkeyPatch):
    modes: dict[str, bool] = {}

    def look(_: OPD, ctx: StageContext) -> None:
        modes.update({name: m.training for name, m in ctx.student.named_modules()})

    monkeypatch.setattr(OPD, "after_update", look)
    make_adapter("lora", AdapterEntry(options={"of": "opd", "dropout": 0.5})).train_stage(stage())
    assert {on for name, on in modes.items() if name.endswith("lora_dropout.default")} == {True}
    assert not any(on for name, on in modes.items() if "lora_dropout" not in name)


def test_sft_compares_nothing_and_keeps_the_models_dropout():
    assert not SFT().disable_dropout
    model = qwen3()
    examples = [example(prompt, target) for prompt, target in zip(PROMPTS, RESPONSES, strict=True)]
    SFT().train_stage(context(model, ScriptedEngine([]), examples))
    assert model.training
