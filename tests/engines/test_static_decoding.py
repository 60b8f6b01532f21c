"""Decoding on fixed tensors, which a GPU captures as a graph, gives the answers of `generate` and of the growing cache."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.engines import hf, static_decoding
from harness.engines.engine import Completion, Sampling
from harness.engines.hf import HFEngine
from harness.engines.static_decoding import PACES, Pace
from harness.lm.packing import packing
from tests.support.models import FakeTokenizer, byte_renderer, qwen3

GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 24, (length,), generator=GENERATOR).tolist() for length in (5, 1, 9, 3, 3, 7, 2, 12, 5, 4)]
BUDGET, STOPS = 40, (4, 21)
ON_CPU = PACES["cpu"]
SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Look every 3 steps, begin with little room, and record the rows and columns of each layout."""
    made: list[tuple[int, int]] = []
    original = static_decoding.Layout.select

    def spy(self: Any, rows: torch.Tensor, length: int) -> Any:
        made.append((len(rows), length))
        return original(self, rows, length)

    monkeypatch.setattr(static_decoding.Layout, "select", spy)
    monkeypatch.setitem(static_decoding.PACES, "cpu", Pace(looks=3, room=1, growth=2, share=0.5))
    return made


def both(
    model: Any, sampling: Sampling, monkeypatch: pytest.MonkeyPatch, tokenizer: Any = None, prompts: Any = PROMPTS
) -> tuple[list[Completion], list[Completion]]:
    """Return the answers from fixed tensors and from a growing cache."""
    found: list[list[Completion]] = []
    for devices in ({"cpu"}, set[str]()):
        monkeypatch.setattr(hf, "STATIC_ON", devices)
        found.append(HFEngine(model, tokenizer or FakeTokenizer()).generate(prompts, sampling))
    return found[0], found[1]


def random_model(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return model


MODELS = {
    "qwen3": lambda: qwen3(seed=3, tie=False).double(),
    "gpt2": lambda: random_model(GPT2LMHeadModel, GPT2Config(vocab_size=24, n_positions=64, n_embd=16, n_layer=2, n_head=2)),
    "a window longer than the text": lambda: random_model(
        MistralForCausalLM, MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=64)
    ),
    "experts": lambda: random_model(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **SIZES, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
        ),
    ).float(),
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_generate(
    name: str, attention: str, looks_often: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    # transformers' eager attention rounds masks to float32, where a padded row of float64 has nothing to attend to.
    model = MODELS[name]() if attention == "sdpa" else MODELS[name]().float()
    model.set_attn_implementation(attention)
    sampling = Sampling(BUDGET, temperature=0, stop_ids=STOPS)
    ours, growing = both(model, sampling, monkeypatch)
    assert model.config._attn_implementation == attention
    assert ours == growing
    for prompt, done in zip(PROMPTS, ours, strict=True):
        options = {"do_sample": False, "max_new_tokens": BUDGET, "eos_token_id": list(STOPS), "pad_token_id": 0}
        expected = model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert done.tokens == expected
        assert (done.finish == "stop") == (expected[-1] in STOPS)
    # The first layout of this call is the check's.
    rows, lengths = zip(*looks_often[1:], strict=True)
    assert rows[0] == len(PROMPTS)
    assert list(rows) == sorted(rows, reverse=True)
    assert list(lengths) == sorted(lengths)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5, "seed": 3}, {"top_k": 3}, {"top_p": 0.6, "temperature": 2.0}]
)
def test_draws_are_those_of_the_growing_cache(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    model = MODELS["qwen3"]()
    ours, growing = both(model, Sampling(BUDGET, stop_ids=(4,), **settings), monkeypatch)
    assert ours == growing
    assert len({len(done.tokens) for done in ours}) > 3


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("stops", [(), STOPS])
def test_any_budget(budget: int, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    ours, growing = both(MODELS["qwen3"](), Sampling(budget, temperature=0, stop_ids=stops), monkeypatch)
    assert ours == growing


def test_rows_leave_by_halves_and_the_cache_grows(looks_often: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch):
    both(MODELS["qwen3"](), Sampling(BUDGET, temperature=0, stop_ids=STOPS), monkeypatch)
    rows, lengths = zip(*looks_often[1:], strict=True)
    assert set(rows) <= {10, 5, 3, 2, 1}
    assert len(set(rows)) > 2
    assert len(set(lengths)) > 1


def test_a_cpu_keeps_few_rows_that_have_stopped_and_few_empty_columns(
    looks_often: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(PACES, "cpu", ON_CPU)
    ours, growing = both(MODELS["qwen3"](), Sampling(BUDGET, temperature=0, stop_ids=STOPS), monkeypatch)
    assert ours == growing
    rows, lengths = zip(*looks_often[1:], strict=True)
    assert {8, 6} & set(rows)  # three quarters of 10, and of 8
    assert lengths[0] == 32  # 12 columns of the longest prompt and 16 for new tokens, in multiples of 16
    assert all(later - earlier in (0, 16) for earlier, later in pairwise(lengths))


@given(rows=st.integers(1, 3000), stopped=st.integers(0, 3000), share=st.sampled_from([0.5, 0.75]))
def test_a_layout_holds_all_rows_that_run_and_few_others(rows: int, stopped: int, share: float):
    running = max(1, rows - stopped)
    kept = Pace(looks=1, room=1, growth=1, share=share).rows(rows, running)
    assert running <= kept <= rows
    assert kept <= 3 or kept < running / share + 1


def test_a_stop_string_ends_a_row_where_the_growing_cache_ends_it(monkeypatch: pytest.MonkeyPatch):
    renderer = byte_renderer()
    model, tokenizer = qwen3(len(renderer.tokenizer), seed=2).double(), renderer.tokenizer
    prompts = [tokenizer.encode(text) for text in ("weather in Oslo?", "3+4", "hello")]
    plain, _ = both(model, Sampling(24, temperature=0), monkeypatch, tokenizer, prompts)
    texts = [tokenizer.decode(done.tokens) for done in plain]
    strings = tuple(text[at : at + 2] for text, at in zip(texts, (0, 4, 9), strict=True))
    for asked in (strings[:1], strings):
        sampling = Sampling(24, temperature=0, stop_strings=asked, stop_ids=(plain[2].tokens[20],))
        ours, growing = both(model, sampling, monkeypatch, tokenizer, prompts)
        assert ours == growing


def test_a_model_that_packs_generates_with_fixed_tensors_too(monkeypatch: pytest.MonkeyPatch):
    model = MODELS["qwen3"]()
    sampling = Sampling(BUDGET, temperature=0, stop_ids=STOPS)
    expected, _ = both(model, sampling, monkeypatch)
    with packing([model], True, pytest.fail):
        assert both(model, sampling, monkeypatch) == (expected, expected)


class ReadsMasks(Qwen3ForCausalLM):
    """A model that makes something of the mask itself, as those with linear biases do."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        **further: Any,
    ) -> Any:  # fmt: skip
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("expected a mask of two dimensions")
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **further)


class Shifts(Qwen3ForCausalLM):
    """A model that computes something else from fixed tensors."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        **further: Any,
    ) -> Any:  # fmt: skip
        found: Any = super().forward(input_ids, attention_mask, position_ids, past_key_values, **further)
        if not isinstance(past_key_values, DynamicCache):
            found.logits = found.logits.roll(1, -1)
        return found


@pytest.mark.parametrize(
    ("kind", "config", "warned"),
    [
        (MistralForCausalLM, MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8), False),
        (ReadsMasks, Qwen3Config(**SIZES, num_key_value_heads=2), True),
        (Shifts, Qwen3Config(**SIZES, num_key_value_heads=2), True),
    ],
)
def test_where_fixed_tensors_would_not_do_the_cache_grows(
    kind: Any, config: Any, warned: bool, monkeypatch: pytest.MonkeyPatch
):
    model = random_model(kind, config)
    monkeypatch.setattr(static_decoding.StaticDecoder, "run", lambda *_: pytest.fail("it was used"))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        ours, growing = both(model, Sampling(12, temperature=0), monkeypatch)
    assert ours == growing
    assert any("growing cache" in str(each.message) for each in given) == warned


def test_a_step_makes_no_tensor_that_outlives_it(monkeypatch: pytest.MonkeyPatch):
    """A graph holds addresses: after a step every tensor of a layout is where it was."""
    seen: list[tuple[int, ...]] = []
    original = static_decoding.StaticDecoder._step

    def spy(self: Any, layout: Any) -> None:
        caches = [states for layer in layout.cache.layers for states in (layer.keys, layer.values)]
        addresses = tuple(value.data_ptr() for value in (*layout.tensors.values(), *caches))
        original(self, layout)
        assert addresses == tuple(value.data_ptr() for value in (*layout.tensors.values(), *caches))
        assert all(
            a is b for a, b in zip(caches, [s for x in layout.cache.layers for s in (x.keys, x.values)], strict=True)
        )
        seen.append(addresses)

    monkeypatch.setattr(static_decoding.StaticDecoder, "_step", spy)
    both(MODELS["qwen3"](), Sampling(10, temperature=0), monkeypatch)
    assert len(seen) == 9
