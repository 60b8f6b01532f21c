"""`make bench`: generation against transformers' own, and AOPD's step against OPD's, on the tiny suite's models.

Each row is a ratio of medians of interleaved repetitions in one process, because machines are shared and drift. Writes
`benchmarks/RESULTS.md` with the command, commit, threads and hardware.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapters.aopd import AOPD
from adapters.opd import OPD
from harness.adapter import StageContext
from harness.checkpoints import Loaded, load
from harness.config import Model, Optimizer, Training
from harness.engines.base import Completion, Sampling
from harness.engines.hf import HFEngine
from harness.lmeval.tasks import TaskLibrary
from harness.logprobs import StudentForward
from harness.manifest import environment
from harness.models import checkpoint_of, limit_threads
from harness.suites import load_suite
from harness.teachers.local import LocalTeacher

REPETITIONS = 7
PROMPTS = 64
NEW_TOKENS = 48
STEPS = 4
RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Row:
    """One measured ratio: what against what, both medians, and the ratio's range over repetitions."""

    what: str
    baseline: str
    ours: str
    theirs: str
    ratios: list[float]


def main() -> None:
    """Measure and write the results."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    limit_threads(threads)
    context = _context()
    rows = [generation_row(context), step_row(context)]
    RESULTS.write_text(_page(rows, threads), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


def generation_row(context: StageContext) -> Row:
    """Compare our engine with `model.generate` on the same prompts, sampled at temperature 1."""
    prompts = [example.prompt for example in context.examples[:PROMPTS]]
    model = context.student.model
    rates = _alternate(
        lambda seed: _count(context.engine.generate(prompts, _sampling(context, seed))),
        lambda seed: _transformers_tokens(model, context, prompts, seed),
    )
    ours, theirs = (f"{statistics.median(rate):,.0f}" for rate in rates)
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    return Row("generation, response tokens per second", "transformers `generate`", ours, theirs, ratios)


def step_row(context: StageContext) -> Row:
    """Compare one AOPD step with one OPD step at equal rollouts: same student, prompts and seed."""
    adapters = {"aopd": AOPD(), "opd": OPD()}
    state = {name: tensor.clone() for name, tensor in context.student.state_dict().items()}
    seconds: dict[str, list[float]] = {name: [] for name in adapters}
    for _ in range(REPETITIONS):
        for name, adapter in adapters.items():
            context.student.load_state_dict(state)
            log: list[float] = []
            fresh = replace(context, log=lambda step, log=log: log.append(_loss_seconds(step)))
            adapter.train_stage(fresh)
            seconds[name].append(statistics.median(log))
    context.student.load_state_dict(state)
    ours, theirs = (f"{1000 * statistics.median(seconds[name]):,.0f} ms" for name in ("aopd", "opd"))
    ratios = [a / b for a, b in zip(seconds["aopd"], seconds["opd"], strict=True)]
    return Row("AOPD step (teacher, forward, backward, update)", "OPD step", ours, theirs, ratios)


def _context() -> StageContext:
    suite = load_suite("tiny")
    library = TaskLibrary()
    student, teacher = _loaded(suite.student, library), _loaded(suite.teacher or suite.student, library)
    task = library.load("tiny_arithmetic")
    return StageContext(
        student=StudentForward(student.model),
        teacher=LocalTeacher(teacher.model, teacher.renderer.tokenizer, student.renderer.tokenizer),
        engine=HFEngine(student.renderer.tokenizer),
        renderer=student.renderer,
        task=task,
        examples=task.training_examples(student.renderer, PROMPTS * STEPS),
        # A rate of nearly zero keeps the policy, so that both methods see the same rollouts in every step.
        training=Training(
            steps=STEPS, prompts_per_step=PROMPTS, max_new_tokens=NEW_TOKENS, optimizer=Optimizer(lr=1e-12)
        ),
        seed=0,
        device="cpu",
        log=lambda _: None,
    )


def _loaded(spec: Model, library: TaskLibrary) -> Loaded:
    return load(checkpoint_of(spec, 0, library), spec, "cpu")


def _sampling(context: StageContext, seed: int) -> Sampling:
    return Sampling(NEW_TOKENS, temperature=1.0, stop_ids=context.renderer.stop_ids, seed=seed)


def _transformers_tokens(model: object, context: StageContext, prompts: list[list[int]], seed: int) -> int:
    tokenizer = context.renderer.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    torch.manual_seed(seed)
    with torch.no_grad():
        output = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(context.renderer.stop_ids),
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = output[:, inputs["input_ids"].shape[1] :]
    return int((answers != tokenizer.pad_token_id).sum())


def _alternate(*measures: Callable[[int], int]) -> list[list[float]]:
    """Return tokens per second of each measure, in turn A B A B, after one round that is not counted."""
    rates: list[list[float]] = [[] for _ in measures]
    for seed in range(REPETITIONS + 1):
        for rate, measure in zip(rates, measures, strict=True):
            start = time.perf_counter()
            tokens = measure(seed)
            rate.append(tokens / (time.perf_counter() - start))
    return [rate[1:] for rate in rates]


def _count(completions: Sequence[Completion]) -> int:
    return sum(len(completion.tokens) for completion in completions)


def _loss_seconds(step: dict[str, dict[str, float]]) -> float:
    return step["seconds"]["teacher"] + step["seconds"]["student"]


def _page(rows: Sequence[Row], threads: int) -> str:
    made = environment()
    hardware = made["hardware"]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `make bench` at commit `{made['git']['commit']}`, torch {made['packages']['torch']}, "
        f"{threads} thread(s) of {hardware['cpus']} CPUs, {hardware['memory_gib']} GiB. "
        f"Medians of {REPETITIONS} repetitions; the range is over repetitions.",
        "",
        "| measured | ours | baseline | | ratio (range) |",
        "|---|---:|---|---:|---:|",
    ]
    for row in rows:
        ratio = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f} to {max(row.ratios):.2f})"
        lines.append(f"| {row.what} | {row.ours} | {row.baseline} | {row.theirs} | {ratio} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
