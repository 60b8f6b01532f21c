"""Measure one operation on log-probabilities; `logprob_speed` starts it as a separate process.

`python -m benchmarks.logprobs.logprob_work --variant ours_aopd` prints its seconds and its peak memory as JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.logprobs.logprob_variants import VARIANTS, Inputs, Size, Work, make_inputs

WARM_UP_TOKENS = 64
RUNS_ON_GPU = 5
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class WorkCost:
    """Median seconds of a run, and the peak bytes in use during it minus those before it."""

    seconds: float
    bytes: float


@app.command()
def main(
    variant: Annotated[str, typer.Option(help=f"One of {', '.join(VARIANTS)}.")],
    tokens: int = Size.tokens,
    vocabulary: int = Size.vocabulary,
    hidden: int = Size.hidden,
    device: Annotated[str, typer.Option(help="cpu takes float32, cuda bfloat16.")] = "cpu",
) -> None:
    """Measure one variant and print it as JSON."""
    if variant not in VARIANTS:
        raise typer.BadParameter(f"there is no variant {variant}; take one of {', '.join(VARIANTS)}")
    typer.echo(json.dumps(asdict(measured(VARIANTS[variant], Size(tokens, vocabulary, hidden), device))))


def measured(work: Work, size: Size, device: str = "cpu") -> WorkCost:
    """Measure after a warm-up, so that costs that occur once per process do not count; on a CPU it has few tokens."""
    inputs, gpu = make_inputs(size, device), device == "cuda"
    _run(work, inputs.first(size.tokens if gpu else WARM_UP_TOKENS))
    before = _memory_before(gpu)
    seconds = [_run(work, inputs.first(size.tokens)) for _ in range(RUNS_ON_GPU if gpu else 1)]
    peak = torch.cuda.max_memory_allocated() if gpu else _status("VmHWM")
    return WorkCost(statistics.median(seconds), peak - before)


def _run(work: Work, inputs: Inputs) -> float:
    """Return the seconds of a forward and, where there is a gradient, a backward."""
    synchronise = torch.cuda.synchronize if inputs.hidden.is_cuda else lambda: None
    synchronise()
    start = time.perf_counter()
    loss = work(inputs)
    if loss.requires_grad:
        loss.backward()
    synchronise()
    return time.perf_counter() - start


def _memory_before(gpu: bool) -> float:
    """Reset the peak to the memory now in use, and return that in bytes."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # `ru_maxrss` does not work: a child starts with its parent's value, and it cannot be reset after the imports.
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _status(name: str) -> float:
    """Return a line of /proc/self/status in bytes; not a number where there is no such file."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(name)), float("nan"))


if __name__ == "__main__":
    app()
