"""Measure vLLM between two evaluations: loading new weights against a cold start, and its generation against ours."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Measurement
from benchmarks.results_page import cells, table
from benchmarks.setting import Setting
from harness.engines.backend import EngineSite
from harness.engines.hf import HFEngine
from harness.engines.vllm import VLLMEngine
from harness.engines.vllm_backend import VLLM
from harness.lm.checkpoints import save_checkpoint

MISSING = "vLLM is not installed here, so its section is missing: `make vllm`, then `make bench`"


@dataclass(frozen=True)
class HandoverRound:
    """One round's seconds for a cold start and for new weights, and both engines' response tokens per second."""

    start: float
    weights: float
    vllm_rate: float
    our_rate: float


def installed() -> bool:
    """Whether vLLM can be measured here."""
    return importlib.util.find_spec("vllm") is not None


def section(setting: Setting, rounds: int, threads: int) -> str:
    """Measure and return the page's section."""
    with tempfile.TemporaryDirectory() as folder:
        place = EngineSite("cpu", "float32", threads, Path(folder) / "vllm.txt")
        checkpoints = [Path(folder) / name for name in ("student", "teacher")]
        for loaded, checkpoint in zip((setting.student, setting.teacher), checkpoints, strict=True):
            save_checkpoint(loaded, checkpoint)
        found = [_round(setting, checkpoints, place, seed) for seed in range(rounds)]
    rows = [
        Measurement(
            "new weights", "s, less is better", [r.weights for r in found], "cold start", [r.start for r in found]
        ),
        Measurement(
            "generation", "response tokens/s", [r.vllm_rate for r in found], "our engine", [r.our_rate for r in found]
        ),
    ]
    header = ["measured", "unit", "vLLM", "against", "theirs", "ratio (range)"]
    return "\n\n".join(["## vLLM on this machine", table(header, [cells(row) for row in rows]), _note(rounds, setting)])


def _round(setting: Setting, checkpoints: list[Path], place: EngineSite, seed: int) -> HandoverRound:
    """Start an engine on the student, warm it up, generate, then load the teacher's weights and the student's again."""
    started = time.perf_counter()
    engine = VLLMEngine(checkpoints[0], VLLM(), place)
    ready = time.perf_counter()
    ours = HFEngine(
        setting.student.model, setting.student.renderer.tokenizer, setting.context.training.generation_batch
    )
    engine.generate([e.prompt for e in setting.prompts(seed)], setting.sampling(seed))
    rates = [_rate(each, setting, seed + 1) for each in (engine, ours)]
    changing = time.perf_counter()
    for checkpoint in reversed(checkpoints):
        engine.load(checkpoint)
    changed = (time.perf_counter() - changing) / len(checkpoints)
    engine.close()
    return HandoverRound(ready - started, changed, *rates)


def _rate(engine: VLLMEngine | HFEngine, setting: Setting, seed: int) -> float:
    prompts = [example.prompt for example in setting.prompts(seed)]
    started = time.perf_counter()
    done = engine.generate(prompts, setting.sampling(seed))
    return sum(len(completion.tokens) for completion in done) / (time.perf_counter() - started)


def _note(rounds: int, setting: Setting) -> str:
    prompts = len(setting.prompts(0))
    return (
        f"Medians of {rounds} rounds. Each starts a process, warms it up, answers {prompts} prompts of the suite's first task "
        "with vLLM and with our engine on the same weights, then loads two checkpoints from disk. float32. A start ends when "
        "the engine can take a request; preparations during its first request do not count."
    )
