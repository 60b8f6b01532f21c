"""`make bench DEVICE=cuda`: the operation at a real vocabulary and whole steps on one device, in a bounded time.

It needs no network and no checkpoint. Figures go to a JSON file, which `make bench-compare` compares with an earlier one, and
to a page. Each part is measured in turn until the time is up, the most telling first; what is left out is named.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adapters.aopd import AOPD
from adapters.opd import OPD
from benchmarks.device.device_figures import Figure, write_figures
from benchmarks.device.random_step import Load, Shape, random_model, step_lines
from benchmarks.logprobs.logprob_variants import VARIANTS, Size, make_inputs
from benchmarks.logprobs.logprob_work import measured
from benchmarks.results_page import provenance, table
from benchmarks.trl_step import installed
from benchmarks.utilisation import peak_rate
from harness.config.training import Training
from harness.rundir.process.session import this_session

HERE = Path(__file__).parent.parent
MIB = 2**20
# Of each variant: tokens, and the products of (N, H) and (H, V) that full logits need.
OPERATIONS = {
    "aopd": (4096, 4), "opd": (4096, 4), "teacher": (4096, 1), "reverse_kl": (1024, 5), "jsd": (1024, 5),
}  # fmt: skip
SHAPES = {
    "0.6B": (Shape(1024, 3072, 28, 16), Shape(2048, 6144, 28, 16), Load(64, 256, 256)),
    "1.7B": (Shape(2048, 6144, 28, 16), Shape(2048, 6144, 28, 16), Load(16, 256, 2048)),
}
SMALL = {"small": (Shape(64, 128, 2, 2, 4096), Shape(64, 128, 2, 2, 4096), Load(8, 16, 16))}
MODES: dict[str, dict[str, Any]] = {
    "autocast": {"precision": "autocast", "micro_batch": 16},
    "bfloat16_master": {"precision": "bfloat16_master", "micro_batch": 16},
    "bfloat16_master, packed": {"precision": "bfloat16_master", "tokens_per_batch": 8192},
}
Work = tuple[str, Callable[[], Iterator[Figure]]]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    seconds: Annotated[float, typer.Option(help="Begin no measure after so many seconds.")] = 300,
    small: Annotated[bool, typer.Option(help="Small sizes, to try the script on a CPU.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the page and of baselines/.")] = HERE,
) -> None:
    """Measure one device, and write its page and its figures."""
    started, name = time.monotonic(), _name(device)
    torch.set_float32_matmul_precision("highest")
    figures: list[Figure] = [Figure("fastest bfloat16 product", peak_rate("bfloat16", device)(0), "GFLOP/s", "more")]
    left_out: list[str] = []
    for what, work in [*_operations(device, small), *_steps(device, small)]:
        if time.monotonic() - started > seconds:
            left_out.append(f"{what}: the time was up")
            continue
        try:
            figures += list(work())
        except torch.OutOfMemoryError:
            left_out.append(f"{what}: out of memory")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        for figure in figures[-4:]:
            typer.echo(f"{figure.name}: {figure.value:.4g} {figure.unit}")
    key = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    (out / "baselines").mkdir(exist_ok=True)
    write_figures(out / "baselines" / f"{key}.json", name, figures)
    (out / f"RESULTS-{key}.md").write_text(_page(name, figures, left_out), encoding="utf-8")
    typer.echo(f"wrote {out / f'RESULTS-{key}.md'} after {time.monotonic() - started:.0f} s")


def _operations(device: str, small: bool) -> Iterator[Work]:
    """Yield the measures of the log-probability operation: ours, full logits, TRL's."""
    for hidden in (64,) if small else (1024, 4096):
        for kind, (tokens, _) in OPERATIONS.items():
            size = Size(128, 4096, hidden) if small else Size(tokens, 151_936, hidden)
            for who in ("ours", "dense", "trl"):
                name = f"{who}_{kind}"
                if name in VARIANTS and (who != "trl" or installed()):
                    yield f"{name}, hidden {hidden}", lambda n=name, s=size: _operation(n, s, device)
        yield f"gradient error, hidden {hidden}", lambda h=hidden: _errors(Size(128, 4096, h), device)


def _operation(name: str, size: Size, device: str) -> Iterator[Figure]:
    found, kind = measured(VARIANTS[name], size, device), name.partition("_")[2]
    what, products = f"{name}, hidden {size.hidden}", OPERATIONS[kind][1]
    yield Figure(f"{what}: time", 1000 * found.seconds, "ms")
    yield Figure(f"{what}: memory", found.bytes / MIB, "MiB")
    operations = 2 * products * size.tokens * size.hidden * size.vocabulary
    yield Figure(f"{what}: rate, recomputation counted", operations / found.seconds / 1e9, "GFLOP/s", "more")


def _errors(size: Size, device: str) -> Iterator[Figure]:
    """Yield the error of AOPD's gradient against float64, relative to its size, of ours and of full logits."""
    inputs = make_inputs(size, device)
    states, weight = (leaf.detach().double().requires_grad_() for leaf in (inputs.hidden, inputs.weight))
    chosen = (states @ weight.T).log_softmax(-1).gather(-1, inputs.ids[:, :1])
    chosen.mean().backward()
    for who in ("ours", "dense"):
        fresh = inputs.first(size.tokens)
        if who == "ours":
            from harness.lm.logprobs import Head, selected_logprobs

            found = selected_logprobs(fresh.hidden, Head(fresh.weight), fresh.ids[:, :1]).chosen
        else:
            found = (fresh.hidden @ fresh.weight.T).float().log_softmax(-1).gather(-1, fresh.ids[:, :1])
        found.mean().backward()
        assert fresh.hidden.grad is not None
        assert states.grad is not None
        error = (fresh.hidden.grad.double() - states.grad).norm() / states.grad.norm()
        yield Figure(f"gradient error of {who}, hidden {size.hidden}", float(error), "of its size")


def _steps(device: str, small: bool) -> Iterator[Work]:
    """Yield the measures of whole steps at each shape, in each mode."""
    for shape, (student, teacher, load) in (SMALL if small else SHAPES).items():
        for mode, training in MODES.items():
            yield (
                f"OPD step, {shape}, {mode}",
                lambda a=(shape, mode, student, teacher, load, training): _step(OPD(), device, *a),
            )
        yield (
            f"AOPD step, {shape}",
            lambda a=(shape, "autocast", student, teacher, load, MODES["autocast"]): _step(AOPD(), device, *a),
        )


def _step(
    adapter: Any, device: str, shape: str, mode: str, student: Shape, teacher: Shape, load: Load, training: Any
) -> Iterator[Figure]:
    models = random_model(student, torch.float32, device), random_model(teacher, torch.bfloat16, device)
    parameters = sum(p.numel() for p in models[0].parameters())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    line = step_lines(adapter, *models, load, device, **Training.model_validate(training).model_dump())[-1]
    what, seconds = f"{type(adapter).__name__} step, {shape}, {mode}", line["seconds"]
    for phase in ("generate", "teacher", "student", "step"):
        yield Figure(f"{what}: {phase}", seconds[phase], "s")
    yield Figure(f"{what}: generation", 1000 * seconds["generate"] / load.response, "ms a token of all sequences")
    yield Figure(f"{what}: student", 6 * parameters * line["tokens"] / seconds["student"] / 1e9, "GFLOP/s", "more")
    if device == "cuda":
        yield Figure(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _page(name: str, figures: list[Figure], left_out: list[str]) -> str:
    rows = [[figure.name, f"{figure.value:,.4g}", figure.unit, figure.better] for figure in figures]
    peak = figures[0].value
    shares = [f.value / peak for f in figures if f.name.endswith("recomputation counted") and f.name.startswith("ours")]
    parts = [
        f"# Benchmarks: {name}",
        provenance(this_session(), torch.get_num_threads(), 1),
        table(["measured", "value", "unit", "better"], rows),
        f"Ours reach {statistics.median(shares):.2f} of the fastest product's rate (median)." if shares else "",
        "\n".join(f"- left out: {line}" for line in left_out),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    app()
