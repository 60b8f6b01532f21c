"""`make bench DEVICE=cuda`: the operation at a real vocabulary and whole steps on one device, in a bounded time.

It needs no network and no checkpoint. Figures go to a JSON file, which `make bench-compare` compares with an earlier one, and
to a page. Each part is measured in turn until the time is up, the most telling first; what is left out is named. On a CPU the
sizes are small: that tries the script, and tells nothing of a GPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adapters.aopd import AOPD
from adapters.opd import OPD
from benchmarks.device.device_figures import DeviceFigure, DeviceMeasure, write_figures
from benchmarks.device.device_page import PEAK, page
from benchmarks.device.operation_measures import operations
from benchmarks.device.random_step import Load, Numbers, Shape, random_model, step_lines
from benchmarks.results_page import provenance
from benchmarks.trl_step import installed
from benchmarks.utilisation import peak_rate
from harness.config.training import Training
from harness.engines import hf
from harness.engines.engine import Sampling
from harness.rundir.process.session import this_session

HERE = Path(__file__).parent.parent
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
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    seconds: Annotated[float, typer.Option(help="Begin no measure after so many seconds.")] = 300,
    small: Annotated[
        bool | None, typer.Option("--small/--full", help="Small sizes, to try the script; by itself on a CPU.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page and of baselines/.")] = HERE,
) -> None:
    """Measure one device, and write its page and its figures."""
    started, name = time.monotonic(), _name(device)
    if small is None and device == "cpu":
        small = True
        typer.echo("on a CPU the sizes are small, to try the script; --full measures those of a GPU")
    if small:
        name = f"{name}, small sizes"
    key = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    figures_at, page_at = out / "baselines" / f"{key}.json", out / f"RESULTS-{key}.md"
    figures_at.parent.mkdir(exist_ok=True)
    torch.set_float32_matmul_precision("highest")
    figures: list[DeviceFigure] = [DeviceFigure(PEAK, peak_rate("bfloat16", device)(0), "GFLOP/s", "more")]
    left_out, failed = list[str](), False
    for what, work in _everything(device, bool(small)):
        if time.monotonic() - started > seconds:
            left_out.append(f"{what}: the time was up")
            continue
        try:
            figures += list(work())
        except torch.OutOfMemoryError:
            left_out.append(f"{what}: out of memory")
        except Exception as error:
            # A device is lent for minutes: what fails is named, and the rest is measured.
            left_out.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            failed = True
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        for figure in figures[-4:]:
            typer.echo(f"{figure.name}: {figure.value:.4g} {figure.unit}")
        write_figures(figures_at, name, figures)
    made = f"{provenance(this_session(), torch.get_num_threads(), 1)} All took {time.monotonic() - started:.0f} s."
    write_figures(figures_at, name, figures)
    page_at.write_text(page(name, made, figures, left_out), encoding="utf-8")
    typer.echo(f"wrote {page_at} after {time.monotonic() - started:.0f} s")
    if failed:
        typer.echo("\n".join(["some measures failed:", *left_out]), err=True)
        raise typer.Exit(1)


def _everything(device: str, small: bool) -> Iterator[DeviceMeasure]:
    """Yield all measures, the most telling first: those at the smaller of two sizes."""
    first, *others = (64,) if small else (1024, 4096)
    shape, *larger = SMALL if small else SHAPES
    yield from operations(device, small, first)
    yield from _generations(device, small)
    yield from _steps(device, small, shape)
    yield from _trl_steps(device, small)
    for hidden in others:
        yield from operations(device, small, hidden)
    for name in larger:
        yield from _steps(device, small, name)


def _generations(device: str, small: bool) -> Iterator[DeviceMeasure]:
    """Yield the measures of generation: on fixed tensors, with a growing cache, and by transformers' `generate`."""
    shape = "small" if small else "0.6B"
    student, _, load = (SMALL if small else SHAPES)[shape]
    for way in ("fixed tensors", "growing cache", "transformers generate"):
        what = f"generation, {shape}, {load.prompts} sequences, {way}"
        yield what, lambda w=way, n=what: _generation(w, n, student, load, device)


def _generation(way: str, what: str, shape: Shape, load: Load, device: str) -> Iterator[DeviceFigure]:
    model = random_model(shape, torch.bfloat16 if device == "cuda" else torch.float32, device)
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, shape.vocabulary, (load.prompts, load.prompt), generator=draw).tolist()
    numbers: Any = Numbers(shape.vocabulary)
    before, hf.STATIC_ON = hf.STATIC_ON, {device} if way == "fixed tensors" else set[str]()
    try:
        for count in (8, load.response):  # the first compiles and chooses kernels
            started = time.perf_counter()
            if way == "transformers generate":
                ids = torch.tensor(prompts, device=device)
                model.generate(ids, do_sample=True, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
            else:
                hf.HFEngine(model, numbers, load.prompts).generate(prompts, Sampling(count))
            if device == "cuda":
                torch.cuda.synchronize()
    finally:
        hf.STATIC_ON = before
    yield DeviceFigure(
        f"{what}: time", 1000 * (time.perf_counter() - started) / load.response, "ms a token of all sequences"
    )


def _steps(device: str, small: bool, *shapes: str) -> Iterator[DeviceMeasure]:
    """Yield the measures of whole steps at some shapes, in each mode."""
    for shape in shapes:
        student, teacher, load = (SMALL if small else SHAPES)[shape]
        for mode, training in MODES.items():
            yield (
                f"OPD step, {shape}, {mode}",
                lambda a=(shape, mode, student, teacher, load, training): _step(OPD(), device, *a),
            )
        yield (
            f"AOPD step, {shape}",
            lambda a=(shape, "autocast", student, teacher, load, MODES["autocast"]): _step(AOPD(), device, *a),
        )


def _trl_steps(device: str, small: bool) -> Iterator[DeviceMeasure]:
    """Yield the measure of TRL's step at the first shape."""
    shape, (student, teacher, load) = next(iter((SMALL if small else SHAPES).items()))
    if installed():
        yield f"TRL step, {shape}", lambda: _trl_step(f"TRL step, {shape}", student, teacher, load, device)


def _trl_step(what: str, student: Shape, teacher: Shape, load: Load, device: str) -> Iterator[DeviceFigure]:
    from benchmarks.device.random_trl_step import trl_random_steps

    models = random_model(student, torch.float32, device), random_model(teacher, torch.bfloat16, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = trl_random_steps(*models, load, device, min(16, load.prompts))
    for phase, seconds in (("generate", steps.generate), ("teacher", steps.teacher), ("rest", steps.rest)):
        yield DeviceFigure(f"{what}: {phase}", seconds, "s")
    yield DeviceFigure(f"{what}: step", steps.generate + steps.teacher + steps.rest, "s")
    if device == "cuda":
        yield DeviceFigure(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _step(
    adapter: Any, device: str, shape: str, mode: str, student: Shape, teacher: Shape, load: Load, training: Any
) -> Iterator[DeviceFigure]:
    models = random_model(student, torch.float32, device), random_model(teacher, torch.bfloat16, device)
    parameters = sum(p.numel() for p in models[0].parameters())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    line = step_lines(adapter, *models, load, device, **Training.model_validate(training).model_dump())[-1]
    what, seconds = f"{type(adapter).__name__} step, {shape}, {mode}", line["seconds"]
    for phase in ("generate", "teacher", "student", "step"):
        yield DeviceFigure(f"{what}: {phase}", seconds[phase], "s")
    yield DeviceFigure(f"{what}: generation", 1000 * seconds["generate"] / load.response, "ms a token of all sequences")
    yield DeviceFigure(
        f"{what}: student", 6 * parameters * line["tokens"] / seconds["student"] / 1e9, "GFLOP/s", "more"
    )
    if device == "cuda":
        yield DeviceFigure(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    app()
