"""Batches by a token budget, packed or padded, have the losses and gradients of one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from adapters.conformance.all_checks import CHECKS, check_adapter, failures
from adapters.conformance.outcomes import Outcome
from harness.adapter import make_adapter
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError
from harness.lm.logprobs import StudentForward, TeacherRequest
from harness.lm.packing import packing, packs
from harness.lm.precision import autocast
from harness.lm.rollouts import Rollout, make_batches, with_prompts
from harness.lm.trained.recompute import recomputed_layers
from tests.support.models import assert_same_gradients, gradients, local_teacher, qwen3, rollout
from tests.support.stages import Recorder, stage

ROLLOUTS = [
    rollout([3, 4, 5], [6, 7, 2]),
    rollout([8], [9, 10, 11, 12, 13, 2]),
    rollout([3, 1, 4, 1, 5], [9, 2]),
    rollout([7], [2]),
]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 24,
}


def quietly(sentence: str) -> None:
    raise AssertionError(sentence)


def scored(model: Any, rollouts: Sequence[Rollout], **limits: Any) -> tuple[float, dict[str, Tensor]]:
    """Return the mean negative log-likelihood of rollouts and its gradients."""
    student, total = StudentForward(model), 0.0
    student.zero_grad()
    for batch in make_batches(rollouts, "sequence_mean", limits.pop("micro_batch", None), **limits):
        loss = -(student(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(student)


sequences = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(sequences, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 5)), st.booleans())
def test_no_batch_exceeds_its_budget_and_every_token_is_in_one(
    shapes: list[tuple[int, int]], tokens: int, micro_batch: int | None, packed: bool
):
    rollouts = [rollout([3] * prompt, [5] * response) for prompt, response in shapes]
    batches = make_batches(rollouts, "token_mean", micro_batch, tokens=tokens, packed=packed)
    for batch in batches:
        assert batch.input_ids.numel() <= tokens or len(batch.rollouts) == 1
        assert len(batch.rollouts) <= (micro_batch or len(rollouts))
        assert batch.padding == batch.input_ids.numel() - sum(batch.lengths)
        assert int(batch.predicts.sum()) == len(batch.targets)
        assert not (packed and batch.padding)
    assert sum(len(batch.targets) for batch in batches) == sum(response for _, response in shapes)
    if batches:
        assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1)


def test_a_packed_batch_has_the_tokens_of_a_padded_one_in_the_same_order():
    (packed,) = make_batches(ROLLOUTS, "sequence_mean", None, packed=True)
    (padded,) = make_batches(ROLLOUTS, "sequence_mean", None)
    again = packed.padded()
    for name in ("input_ids", "predicts", "targets", "weights", "credit"):
        assert torch.equal(getattr(again, name), getattr(padded, name)), name
    other = with_prompts(packed, [[1, 2]] * len(packed.rollouts))
    assert other.packed
    assert torch.equal(other.targets, packed.targets)


@pytest.mark.parametrize("tokens", [5, 12, 16, 1000])
@pytest.mark.parametrize("packed", [True, False])
def test_losses_and_gradients_are_those_of_one_padded_batch(tokens: int, packed: bool):
    model = qwen3()
    loss, expected = scored(model, ROLLOUTS)
    with packing([model], packed, quietly):
        found, ours = scored(model, ROLLOUTS, tokens=tokens, packed=packed)
    assert found == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(ours, expected, 1e-6)


def test_packed_layers_that_are_computed_again_have_the_same_gradients():
    model = qwen3()
    _, expected = scored(model, ROLLOUTS)
    with packing([model], True, quietly), recomputed_layers(model, True):
        _, ours = scored(model, ROLLOUTS, packed=True)
    assert_same_gradients(ours, expected, 1e-6)


def test_packing_holds_under_autocast():
    model = qwen3(dtype=torch.float32)
    with autocast("cpu", "bfloat16"):
        loss, _ = scored(model, ROLLOUTS)
    with packing([model], True, quietly), autocast("cpu", "bfloat16"):
        found, _ = scored(model, ROLLOUTS, packed=True)
    assert found == pytest.approx(loss, rel=0.02)


def built(config: Any, cls: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config).double().eval()


KINDS: dict[str, Any] = {
    "llama": lambda: built(LlamaConfig(**SIZES), LlamaForCausalLM),
    "mistral with a window of 3": lambda: built(
        MistralConfig(**SIZES, sliding_window=3, num_key_value_heads=1), MistralForCausalLM
    ),
    "gpt2": lambda: built(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=24), GPT2LMHeadModel),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_architectures_take_packed_batches(kind: str):
    model = KINDS[kind]()
    loss, expected = scored(model, ROLLOUTS)
    with packing([model], True, quietly):
        assert packs(model)
        found, ours = scored(model, ROLLOUTS, packed=True)
    assert not packs(model)
    assert found == pytest.approx(loss, rel=1e-6)
    assert_same_gradients(ours, expected, 1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: built(Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8), Gemma2ForCausalLM),
        lambda: built(MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, state_size=4), MambaForCausalLM),
    ],
    ids=["capped attention", "recurrent"],
)
def test_a_model_that_would_compute_something_else_is_left_as_it_is_with_a_sentence(model: Any):
    subject, sentences = model(), list[str]()
    before = subject.config._attn_implementation
    with packing([subject], True, sentences.append):
        assert not packs(subject)
    assert subject.config._attn_implementation == before
    assert len(sentences) == 1
    assert type(subject).__name__ in sentences[0]


def test_a_model_that_takes_packed_batches_generates_as_before():
    from harness.engines.engine import Sampling
    from harness.engines.hf import HFEngine
    from tests.support.models import FakeTokenizer

    model = qwen3()
    prompts, sampling = [[3, 4, 5], [8], [9, 1]], Sampling(8, stop_ids=(2,), seed=1)
    expected = HFEngine(model, FakeTokenizer()).generate(prompts, sampling)
    with packing([model], True, quietly):
        assert HFEngine(model, FakeTokenizer()).generate(prompts, sampling) == expected


def test_a_teacher_scores_packed_batches_as_padded_ones():
    teacher, request = local_teacher(), TeacherRequest(top_k=3, entropy=True)
    (padded,), (packed,) = (make_batches(ROLLOUTS, "token_mean", None, packed=packed) for packed in (False, True))
    expected = teacher.score(padded, request, 0.7)
    with packing([teacher.model], True, quietly):
        found = teacher.score(packed, request, 0.7)
    torch.testing.assert_close(found.sampled, expected.sampled)
    assert torch.equal(found.top_ids, expected.top_ids)


@pytest.mark.parametrize("name", ["sft", "opd", "aopd", "gkd", "rkl", "tropd"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_stage_by_tokens_has_the_gradients_of_one_by_sequences(name: str, packed: bool, recorder: type[Recorder]):
    adapter = make_adapter(name, AdapterEntry(options={"top_k": 4} if name in ("aopd", "tropd") else {}))
    log: list[dict[str, Any]] = []
    made = []
    for training in ({}, {"tokens_per_batch": 11, "packed": packed}):
        adapter.train_stage(stage(training, log))
        made.append(recorder.made[-1])
    assert len(made[1].batches[0]) > len(made[0].batches[0])
    assert sum(made[1].losses) == pytest.approx(sum(made[0].losses), rel=1e-6)
    assert_same_gradients(made[1].gradients[0], made[0].gradients[0], 1e-6)
    assert (log[-1]["padding_share"] == 0) == packed
    assert log[0]["padding_share"] > 0


@pytest.mark.parametrize("name", ["aopd", "gkd", "sdft", "grpo", "ewc", "kl_to_start", "lora"])
def test_conformance_holds_for_packed_batches(name: str):
    few = {"aopd": {"top_k": 4}, **{wrapper: {"of": "opd"} for wrapper in ("ewc", "kl_to_start", "lora")}}
    adapter = make_adapter(name, AdapterEntry(options=few.get(name, {})))
    asked = ("gradient", "accumulation", "masks", "resume", "empty and cut responses", "teacher = student")
    assert set(asked) <= set(CHECKS)
    outcomes: list[Outcome] = failures(check_adapter(adapter, asked, {"tokens_per_batch": 1000}))
    assert not outcomes, outcomes


def test_a_mean_over_micro_batches_of_sequences_refuses_a_token_budget():
    from harness.config.training import Training

    adapter = make_adapter("opd", AdapterEntry(options={"reduction": "micro_batch_mean"}))
    with pytest.raises(ConfigError, match="micro_batch_mean"):
        adapter.refuse(Training(tokens_per_batch=64))
