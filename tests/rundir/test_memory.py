"""Peak memory by phase: what a phase took and gave back counts, in it and in the phase around it, and not in a later one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.rundir.process.session import CLEAR_REFS, PeakMemory

BIG, MARGIN = 400 * 2**20, 100 * 2**20


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux can set a process's peak back")
def test_a_phase_holds_its_own_peak_and_its_inner_ones():
    memory = PeakMemory("cpu")
    with memory("before"):
        pass
    with memory("outer"), memory("inner"):
        np.ones(BIG // 8).sum()
    with memory("after"):
        pass
    peaks = memory.summary
    assert peaks["of"] == "process"
    assert peaks["inner"] - peaks["before"] > BIG - MARGIN
    assert peaks["outer"] >= peaks["inner"]
    assert peaks["inner"] - peaks["after"] > BIG - MARGIN


def test_a_phase_that_fails_is_closed_and_a_phase_that_comes_again_keeps_the_higher_peak():
    memory = PeakMemory("cpu")
    with pytest.raises(ZeroDivisionError), memory("train"):
        _ = float(np.ones(BIG // 8).sum()) / int("0")
    peak = memory.summary["train"]
    with memory("train"):
        pass
    with memory("evaluate"):
        pass
    assert memory.summary["train"] >= peak
    assert set(memory.summary) == {"of", "train", "evaluate"}


def test_a_gpu_is_asked_for_the_peak_since_it_was_last_asked(monkeypatch: pytest.MonkeyPatch):
    peaks = iter([7, 30, 20, 10])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    memory = PeakMemory("cuda:0")
    with memory("train"), memory("models"):
        pass
    assert memory.summary == {"of": "gpu", "train": 30, "models": 20}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_the_peak_is_what_tensors_took():
    memory = PeakMemory("cuda")
    with memory("train"):
        torch.ones(BIG // 4, device="cuda").sum().item()
    with memory("evaluate"):
        pass
    peaks = memory.summary
    assert peaks["of"] == "gpu"
    assert peaks["train"] - peaks["evaluate"] >= BIG
