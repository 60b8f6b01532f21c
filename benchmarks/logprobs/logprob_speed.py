"""Measure the log-probability operation at a real vocabulary: time and memory against full logits and TRL, AOPD against OPD.

Every measurement runs in a separate process (`benchmarks.logprobs.logprob_work`); each round runs all of them once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.logprobs.logprob_variants import TOP_K, Size
from benchmarks.logprobs.logprob_work import WorkCost
from benchmarks.measure import Measurement
from benchmarks.results_page import cells, table
from benchmarks.trl_step import installed
from benchmarks.utilisation import peak_rate

MIB = 2**20
FULL, TRL_TILES = "full logits", "TRL, chunked"
AOPD_SIZE = Size()
# Full logits of student and teacher, kept for a divergence's gradient, would not fit into memory together with more tokens.
WHOLE_SIZE = Size(tokens=1024)


@dataclass(frozen=True)
class VariantPair:
    """One of our variants and its baseline; `products` is how many products of (N, H) and (H, V) full logits need."""

    what: str
    ours: str
    baseline: str
    theirs: str
    size: Size
    products: int | None = None


COMPARISONS = (
    VariantPair(f"AOPD, sampled token and top {TOP_K}", "ours_aopd", FULL, "dense_aopd", AOPD_SIZE, 3),
    VariantPair("AOPD", "ours_aopd", "our OPD, sampled token", "ours_opd", AOPD_SIZE),
    VariantPair("AOPD with the step log's figures", "ours_aopd_diagnosed", "AOPD alone", "ours_aopd", AOPD_SIZE),
    VariantPair("OPD, sampled token", "ours_opd", f"{TRL_TILES}: the same", "trl_opd", AOPD_SIZE),
    VariantPair(f"teacher, sampled token and top {TOP_K}", "ours_teacher", FULL, "dense_teacher", AOPD_SIZE, 1),
    VariantPair("reverse KL", "ours_reverse_kl", FULL, "dense_reverse_kl", WHOLE_SIZE, 4),
    VariantPair("reverse KL", "ours_reverse_kl", f"{TRL_TILES}: the same", "trl_reverse_kl", WHOLE_SIZE),
    VariantPair("JSD, beta 0.5", "ours_jsd", FULL, "dense_jsd", WHOLE_SIZE, 4),
    VariantPair("JSD, beta 0.5", "ours_jsd", f"{TRL_TILES}: the same", "trl_jsd", WHOLE_SIZE),
)


@dataclass(frozen=True)
class SpeedRound:
    """One round on a device: each variant's cost, and the fastest matrix product's GFLOP/s."""

    measured: Mapping[str, WorkCost]
    peak: float


def section(rounds: int, threads: int) -> str:
    """Measure and return the page's section."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    measure = partial(measure_in_process, threads=threads)
    found = {device: [one_round(device, measure) for _ in range(rounds)] for device in devices}
    return text(found, threads)


def one_round(device: str, measure: Callable[[str, Size, str], WorkCost]) -> SpeedRound:
    """Measure every variant once."""
    sizes = {name: c.size for c in comparisons() for name in (c.ours, c.theirs)}
    measured = {name: measure(name, size, device) for name, size in sizes.items()}
    return SpeedRound(measured, peak_rate(_precision(device), device)(0))


def comparisons() -> list[VariantPair]:
    """Return the comparisons that can run here: those with TRL only where it is installed."""
    return [c for c in COMPARISONS if installed() or not c.theirs.startswith("trl_")]


def measure_in_process(variant: str, size: Size, device: str, threads: int) -> WorkCost:
    """Measure one variant in a separate process."""
    numbers = {"tokens": size.tokens, "vocabulary": size.vocabulary, "hidden": size.hidden}
    options = [f"--{name}={value}" for name, value in numbers.items()]
    command = [
        sys.executable,
        "-m",
        "benchmarks.logprobs.logprob_work",
        "--variant",
        variant,
        "--device",
        device,
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return WorkCost(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout))


def text(found: Mapping[str, Sequence[SpeedRound]], threads: int) -> str:
    """Return the section: a table of all devices, and how to read it."""
    rows = [row for device, rounds in found.items() for row in _rows(device, rounds)]
    header = ["measured", "unit", "ours", "against", "theirs", "ours / theirs (range)"]
    gpu = [] if "cuda" in found else ["no GPU here: its rows are missing."]
    parts = [
        f"## Log-probabilities at a vocabulary of {AOPD_SIZE.vocabulary:,}",
        table(header, [cells(row) for row in rows]),
        "\n".join(f"- {note}" for note in [*notes(threads, len(found["cpu"])), *gpu]),
    ]
    return "\n\n".join(parts)


def _rows(device: str, rounds: Sequence[SpeedRound]) -> Iterator[Measurement]:
    peaks, where, precision = [r.peak for r in rounds], f"{device}, {_precision(device)}", _precision(device)
    for c in comparisons():
        ours, theirs = ([r.measured[name] for r in rounds] for name in (c.ours, c.theirs))
        what, seconds = f"{c.what}, {where}", [m.seconds for m in ours]
        yield Measurement(
            f"{what}: time", "ms", [1000 * s for s in seconds], c.baseline, [1000 * m.seconds for m in theirs]
        )
        yield Measurement(
            f"{what}: memory", "MiB", [m.bytes / MIB for m in ours], c.baseline, [m.bytes / MIB for m in theirs]
        )
        if c.products:
            rates = [2 * c.products * c.size.tokens * c.size.vocabulary * c.size.hidden / s / 1e9 for s in seconds]
            yield Measurement(f"{what}: needed products", "GFLOP/s", rates, f"fastest {precision} product", peaks)


def notes(threads: int, rounds: int) -> list[str]:
    """Return notes on how the figures were made."""
    lines = [
        f"{AOPD_SIZE.tokens:,} tokens ({WHOLE_SIZE.tokens:,} for reverse KL and JSD), hidden size {AOPD_SIZE.hidden}, "
        f"random states, heads and ids; forward and backward to states and head, the teacher's side forward alone. CPU: "
        f"float32, threads: {threads}; GPU: bfloat16. Medians of {rounds} rounds in turn; every measurement is one run (GPU: "
        "the median of five) after a warm-up, in a separate process.",
        "Memory is the peak during the run minus the memory in use before it, inputs included; the gradient of the head, "
        f"{AOPD_SIZE.vocabulary * AOPD_SIZE.hidden * 4 / MIB:,.0f} MiB in float32, is part of all rows but the teacher's. "
        "CPU: the kernel's own peak of the resident set, reset before the run, so no sampling misses it. "
        "GPU: the allocator's own peak.",
        "Full logits are one `hidden @ weight.T`, in float32, `log_softmax`, `gather` or the divergence, by autograd. "
        "Needed products are those that full logits need; ours computes logits again in the backward (4 for 3 in AOPD, 6 for "
        "4 in divergences, where the teacher's are computed again too), and that extra work does not count as done.",
    ]
    if installed():
        lines.append(
            "TRL's peers are what its trainers run: `ChunkedLogProbFunction` (one token and the entropy, as ours gives) and "
            "`DistillationTrainer`'s chunked divergence (beta 1 and 0.5; the student's entropy besides), with TRL's own tile "
            "sizes; on a GPU both are Triton kernels."
        )
    return lines


def _precision(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"
