"""A sample of what `make architectures` tries: attention, learned positions, hybrid and recurrent models."""

from __future__ import annotations

import pytest
import torch

from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine, drops_rows
from tests.engines.architectures import PROMPTS, STOPS, build, judge

ATTENTION = ("qwen3", "gpt2", "gemma3_text", "mixtral")
STATEFUL = ("qwen3_next", "qwen3_5_text", "granitemoehybrid", "jamba", "mamba2", "rwkv")


@pytest.mark.parametrize("name", [*ATTENTION, *STATEFUL])
def test_an_architecture_gives_transformers_log_probabilities_and_answers(name: str):
    verdict = judge(name)
    assert (verdict.logprobs, verdict.generation) == ("equal", "equal"), verdict
    assert drops_rows(build(name)) == (name in ATTENTION)


@pytest.mark.parametrize("name", ["qwen3_next", "rwkv"])
def test_draws_of_a_model_with_a_state_depend_on_their_seed_alone_and_follow_its_settings(name: str):
    model = build(name)
    engine = HFEngine(model, None)
    torch.manual_seed(1)
    drawn = engine.generate(PROMPTS, Sampling(6, stop_ids=STOPS, seed=7))
    torch.manual_seed(2)
    assert engine.generate(PROMPTS, Sampling(6, stop_ids=STOPS, seed=7)) == drawn
    assert engine.generate(PROMPTS, Sampling(6, stop_ids=STOPS, seed=8)) != drawn
    greedy = engine.generate(PROMPTS, Sampling(6, temperature=0, stop_ids=STOPS))
    assert engine.generate(PROMPTS, Sampling(6, temperature=3.0, top_k=1, stop_ids=STOPS, seed=9)) == greedy
    # The checkpoint's own settings are not the suite's, and stay as they were.
    model.generation_config.repetition_penalty = 3.0
    assert engine.generate(PROMPTS, Sampling(6, temperature=0, stop_ids=STOPS)) == greedy
    assert model.generation_config.repetition_penalty == 3.0
    for done in greedy:
        assert (done.finish == "stop") == (done.tokens[-1] in STOPS)
