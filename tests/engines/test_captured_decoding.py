"""On a CUDA device: a decoding step is captured and replayed, and gives the answers of the growing cache."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from harness.engines import hf, static_decoding
from harness.engines.engine import Completion, Sampling
from harness.engines.hf import HFEngine
from tests.support.models import FakeTokenizer, qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DRAW = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 24, (length,), generator=DRAW).tolist() for length in (5, 1, 9, 3, 3, 7, 2, 12)]


def answers(model: Any, sampling: Sampling, devices: set[str], monkeypatch: pytest.MonkeyPatch) -> list[Completion]:
    monkeypatch.setattr(hf, "STATIC_ON", devices)
    return HFEngine(model, FakeTokenizer()).generate(PROMPTS, sampling)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3}, {"top_k": 3, "top_p": 0.9, "seed": 4}])
def test_captured_steps_give_the_answers_of_the_growing_cache(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    replayed: list[bool] = []
    original = static_decoding.capture

    def spy(step: Any, layout: Any) -> Any:
        replay = original(step, layout)
        replayed.append(replay is not step)
        return replay

    monkeypatch.setattr(static_decoding, "capture", spy)
    monkeypatch.setitem(static_decoding.PACES, "cuda", static_decoding.Pace(looks=16, room=16, growth=2, share=0.5))
    model = qwen3(seed=3, tie=False).double().to("cuda")
    sampling = Sampling(60, stop_ids=(4,), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = answers(model, sampling, {"cuda"}, monkeypatch)
    assert found == answers(model, sampling, set(), monkeypatch)
    assert len(replayed) > 1
    assert all(replayed)


def test_new_weights_are_those_of_the_next_call(monkeypatch: pytest.MonkeyPatch):
    model, sampling = qwen3(seed=3, tie=False).double().to("cuda"), Sampling(20, temperature=0)
    engine = HFEngine(model, FakeTokenizer())
    before = engine.generate(PROMPTS, sampling)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    after = engine.generate(PROMPTS, sampling)
    assert after != before
    assert after == answers(model, sampling, set(), monkeypatch)


def test_a_step_that_cannot_be_captured_runs_all_the_same(monkeypatch: pytest.MonkeyPatch):
    model, sampling = qwen3(seed=3, tie=False).double().to("cuda"), Sampling(20, temperature=0)
    expected = answers(model, sampling, set(), monkeypatch)
    original = static_decoding.StaticDecoder._step

    def waiting(self: Any, layout: Any) -> None:
        original(self, layout)
        layout.step.item()

    monkeypatch.setattr(static_decoding.StaticDecoder, "_step", waiting)
    with pytest.warns(UserWarning, match="cannot be captured"):
        assert answers(model, sampling, {"cuda"}, monkeypatch) == expected
