"""The generation engine: greedy equals transformers' own, draws follow the distribution and depend only on their seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

from harness.engines import decoding, hf
from harness.engines.engine import Completion, Sampling
from harness.engines.hf import HFEngine
from tests.support.models import FakeTokenizer, byte_renderer, dense_logprobs, qwen3

GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 24, (length,), generator=GENERATOR).tolist() for length in (5, 1, 9, 3, 3, 7, 2, 12, 5, 4)]
BUDGET = 20
# Tokens that this model's greedy answers contain at different places, so that rows stop at different steps.
STOPS = (4, 21)


@pytest.fixture(scope="module")
def model() -> Any:
    return qwen3(seed=3, tie=False)


def engine(model: Any, batch_size: int = 64) -> HFEngine:
    return HFEngine(model, FakeTokenizer(), batch_size)


def by_generate(model: Any, prompts: list[list[int]], stops: tuple[int, ...]) -> list[list[int]]:
    """Return transformers' greedy answers, cut after the stop token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    eos = list(stops) or None
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=BUDGET, eos_token_id=eos, pad_token_id=0
    )
    return [_cut(row, stops) for row in out[:, width:].tolist()]


def _cut(tokens: list[int], stops: tuple[int, ...]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens


def greedy(model: Any, batch_size: int = 64, stops: tuple[int, ...] = STOPS, **settings: Any) -> list[Completion]:
    return engine(model, batch_size).generate(PROMPTS, Sampling(BUDGET, temperature=0, stop_ids=stops, **settings))


def test_greedy_equals_transformers_for_prompts_of_mixed_length_with_stop_tokens(model: Any):
    expected = by_generate(model, PROMPTS, STOPS)
    assert len({len(tokens) for tokens in expected}) >= 6, "rows must end at different steps for this to test anything"
    assert [done.tokens for done in greedy(model)] == expected


def test_greedy_equals_transformers_without_stop_tokens(model: Any):
    assert [done.tokens for done in greedy(model, stops=())] == by_generate(model, PROMPTS, ())


def test_answers_come_back_in_the_prompts_order_whatever_the_batches(model: Any):
    expected = greedy(model)
    for batch_size in (1, 3, len(PROMPTS)):
        assert greedy(model, batch_size) == expected


@pytest.mark.parametrize("below", [0.0, 0.5, 1.0])
def test_leaving_finished_rows_out_does_not_change_the_others(
    model: Any, below: float, monkeypatch: pytest.MonkeyPatch
):
    kept: list[int] = []
    original = hf.DynamicCache.batch_select_indices

    def spy(self: Any, indices: torch.Tensor) -> Any:
        kept.append(len(indices))
        return original(self, indices)

    monkeypatch.setattr(hf.DynamicCache, "batch_select_indices", spy)
    monkeypatch.setattr(hf, "STATIC_ON", set[str]())
    monkeypatch.setattr(decoding, "COMPACT_BELOW", below)
    assert [done.tokens for done in greedy(model)] == by_generate(model, PROMPTS, STOPS)
    assert bool(kept) == (below > 0)
    assert kept == sorted(kept, reverse=True)


def test_models_with_absolute_positions_answer_in_a_padded_batch_as_alone():
    config = GPT2Config(vocab_size=24, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    torch.manual_seed(0)
    absolute: Any = GPT2LMHeadModel(config).double().eval()
    separate = [by_generate(absolute, [prompt], STOPS)[0] for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in separate}) > 5
    assert [done.tokens for done in greedy(absolute)] == separate


def test_finish_says_stop_only_for_rows_that_stopped_by_themselves(model: Any):
    completions = greedy(model)
    assert {done.finish for done in completions} == {"stop", "length"}
    for done in completions:
        assert (done.finish == "stop") == (done.tokens[-1] in STOPS)
        assert len(done.tokens) == BUDGET or done.finish == "stop"
        assert not set(done.tokens[:-1]) & set(STOPS)


def test_a_stop_token_on_the_last_step_of_the_budget_is_a_stop(model: Any):
    tokens = by_generate(model, PROMPTS[:1], ())[0]
    first_new = next(i for i in range(1, BUDGET) if tokens[i] not in tokens[:i])
    sampling = Sampling(first_new + 1, temperature=0, stop_ids=(tokens[first_new],))
    assert engine(model).generate(PROMPTS[:1], sampling) == [Completion(tokens[: first_new + 1], "stop")]


def test_no_prompts_give_no_answers(model: Any):
    assert engine(model).generate([], Sampling(4)) == []


def test_top_k_of_one_is_greedy_at_any_temperature(model: Any):
    warm = engine(model).generate(PROMPTS, Sampling(BUDGET, temperature=3.0, top_k=1, stop_ids=STOPS, seed=9))
    assert warm == greedy(model)


def drawn(model: Any, seed: int, **settings: Any) -> list[Completion]:
    return engine(model).generate(PROMPTS, Sampling(BUDGET, stop_ids=STOPS, seed=seed, **settings))


def test_draws_depend_on_their_seed_alone(model: Any):
    torch.manual_seed(1)
    first = drawn(model, seed=7)
    torch.manual_seed(2)
    assert drawn(model, seed=7) == first
    assert drawn(model, seed=8) != first


def test_draws_of_a_prompt_do_not_depend_on_what_else_is_drawn(model: Any):
    whole = drawn(model, seed=7)
    for batch_size, order in ((1, range(10)), (4, range(9, -1, -1)), (64, (3, 8, 1))):
        asked = [PROMPTS[i] for i in order]
        # Prompts 3 and 4 differ, so a prompt occurs once and its draws are its own.
        found = engine(model, batch_size).generate(asked, Sampling(BUDGET, stop_ids=STOPS, seed=7))
        assert found == [whole[i] for i in order]


def test_a_prompt_that_is_asked_several_times_is_read_once(model: Any):
    read: list[int] = []

    def count(_: Any, __: Any, asked: dict[str, Any]) -> None:
        read.append(len(asked["input_ids"]))

    prompts = [PROMPTS[i] for i in (0, 1, 0, 2, 1, 0)]
    sampling = Sampling(BUDGET, stop_ids=STOPS, seed=5)
    ours = engine(model)
    ours.generate(prompts[:1], sampling)  # the first call tries fixed tensors
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    answers = ours.generate(prompts, sampling)
    hook.remove()
    assert read[:2] == [3, sum(len(answer.tokens) > 1 for answer in answers)]
    # One prompt a batch is never shared, and a draw depends on the prompt and how often it was asked before.
    assert answers == engine(model, batch_size=1).generate(prompts, sampling)


def test_two_policies_that_are_alike_share_most_of_their_draws(model: Any):
    """Common random numbers: equal tokens at least as often as (1 - TV) / (1 + TV), which independent draws do not reach."""
    nearby = qwen3(seed=3, tie=False)
    with torch.no_grad():
        nearby.lm_head.weight.mul_(1.02)
    p, q = (dense_logprobs(m, PROMPTS[0])[-1].exp() for m in (model, nearby))
    distance = float((p - q).abs().sum() / 2)
    sampling = Sampling(1, seed=5)
    first, second = (
        HFEngine(m, FakeTokenizer(), 1000).generate([PROMPTS[0]] * 4000, sampling) for m in (model, nearby)
    )
    equal = sum(a.tokens == b.tokens for a, b in zip(first, second, strict=True)) / 4000
    assert equal > (1 - distance) / (1 + distance) - 0.02
    assert equal > 2 * float((p * q).sum())


def test_drawing_leaves_the_global_generators_alone(model: Any):
    torch.manual_seed(3)
    np.random.seed(4)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(4)
    drawn(model, seed=7)
    assert (torch.rand(1).item(), np.random.rand()) == expected


def test_a_model_in_training_is_in_training_again_afterwards(model: Any):
    seen: list[bool] = []
    handle = model.register_forward_hook(lambda module, *_: seen.append(module.training))
    try:
        model.train()
        drawn(model, seed=1)
        assert model.training
        assert not any(seen)
        model.eval()
        drawn(model, seed=1)
        assert not model.training
    finally:
        handle.remove()
        model.eval()


def test_so_is_one_whose_answers_fail(model: Any):
    try:
        model.train()
        with pytest.raises(IndexError):
            engine(model).generate([[10**6]], Sampling(BUDGET))
        assert model.training
    finally:
        model.eval()


def counts(model: Any, **settings: Any) -> np.ndarray:
    """Return how often each token comes first in 4000 draws."""
    sampling = Sampling(1, seed=5, **settings)
    completions = HFEngine(model, FakeTokenizer(), 1000).generate([PROMPTS[0]] * 4000, sampling)
    return np.bincount([done.tokens[0] for done in completions], minlength=24)


def fit(observed: np.ndarray, expected: torch.Tensor) -> float:
    """Return the chi-square p-value of counts, rare tokens put together."""
    shares = expected.detach().numpy() * observed.sum()
    rare = shares < 5
    pooled = [np.append(x[~rare], x[rare].sum() + 1e-9) for x in (observed, shares)]
    return float(stats.chisquare(pooled[0], pooled[1], sum_check=False).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_their_temperature(model: Any, temperature: float):
    observed = counts(model, temperature=temperature)
    for candidate in (0.5, 1.0, 2.0):
        p_value = fit(observed, dense_logprobs(model, PROMPTS[0], candidate)[-1].exp())
        assert (p_value > 1e-3) == (candidate == temperature), (candidate, p_value)


def test_top_k_draws_from_the_k_most_probable_renormalised(model: Any):
    probabilities = dense_logprobs(model, PROMPTS[0])[-1].exp()
    top = probabilities.topk(3)
    observed = counts(model, top_k=3)
    assert set(observed.nonzero()[0]) == set(top.indices.tolist())
    expected = torch.zeros(24, dtype=torch.float64)
    expected[top.indices] = top.values / top.values.sum()
    assert fit(observed, expected) > 1e-3


def test_top_p_draws_from_the_smallest_set_that_reaches_p(model: Any):
    probabilities, order = dense_logprobs(model, PROMPTS[0])[-1].exp().sort(descending=True)
    size = int((probabilities.cumsum(0) < 0.6).sum()) + 1
    assert 1 < size < 24
    assert set(counts(model, top_p=0.6).nonzero()[0]) == set(order[:size].tolist())


def test_a_stop_string_ends_a_row_even_where_it_spans_tokens():
    renderer = byte_renderer()
    model = qwen3(len(renderer.tokenizer), seed=2)
    prompts = [renderer.tokenizer.encode(text) for text in ("weather in Oslo?", "3+4", "hello")]
    plain = HFEngine(model, renderer.tokenizer).generate(prompts, Sampling(24, temperature=0))
    # two bytes from the middle of the first answer: a string that no single token holds
    wanted = next(
        renderer.tokenizer.decode(pair)
        for pair in zip(plain[0].tokens[3:], plain[0].tokens[4:], strict=False)
        if renderer.tokenizer.decode(pair).isascii() and len(renderer.tokenizer.decode(pair)) == 2
    )
    sampling = Sampling(24, temperature=0, stop_strings=(wanted,))
    stopped = HFEngine(model, renderer.tokenizer).generate(prompts, sampling)
    assert stopped[0].finish == "stop"
    assert len(stopped[0].tokens) < 24
    for before, after in zip(plain, stopped, strict=True):
        text = renderer.tokenizer.decode(after.tokens)
        assert before.tokens[: len(after.tokens)] == after.tokens
        assert (after.finish == "stop") == text.endswith(wanted)
        assert wanted not in text[:-1]
