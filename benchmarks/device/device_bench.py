"""`make bench DEVICE=cuda`: the operation at a real vocabulary and whole steps on one device, in a bounded time.

It needs no network and no checkpoint. Figures go to a JSON file, which `make bench-compare` compares with an earlier one, and
to a page. Each part is measured in turn until the time is up, the most telling first; what is left out is named.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from adapters.aopd import AOPD
from adapters.loop.tokens import Tokens
from adapters.opd import OPD
from benchmarks.device.device_figures import Figure, write_figures
from benchmarks.device.random_step import Load, Numbers, Shape, random_model, step_lines
from benchmarks.logprobs.logprob_variants import VARIANTS, Inputs, Size, make_inputs
from benchmarks.logprobs.logprob_work import measured
from benchmarks.results_page import provenance, table
from benchmarks.trl_step import installed
from benchmarks.utilisation import peak_rate
from harness.config.training import Training
from harness.engines import hf
from harness.engines.engine import Sampling
from harness.lm import output_layer, tiles
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
    for what, work in _everything(device, small):
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


def _everything(device: str, small: bool) -> Iterator[Work]:
    """Yield all measures, the most telling first: those at the smaller of two sizes."""
    first, *others = (64,) if small else (1024, 4096)
    shape, *larger = SMALL if small else SHAPES
    yield from _operations(device, small, first)
    yield from _generations(device, small)
    yield from _steps(device, small, shape)
    yield from _trl_steps(device, small)
    for hidden in others:
        yield from _operations(device, small, hidden)
    for name in larger:
        yield from _steps(device, small, name)


def _operations(device: str, small: bool, *sizes: int) -> Iterator[Work]:
    """Yield the measures of the log-probability operation: ours, without kernels, full logits, TRL's, Liger's."""
    for hidden in sizes:
        for kind, (tokens, _) in OPERATIONS.items():
            size = Size(128, 4096, hidden) if small else Size(tokens, 151_936, hidden)
            for who in ("ours", "tiled", "dense", "trl", "liger"):
                name = f"{'ours' if who == 'tiled' else who}_{kind}"
                if name in VARIANTS and _measurable(who, device):
                    what = f"{who}_{kind}, hidden {hidden}"
                    yield what, lambda n=name, w=what, s=size: _operation(n, w, s, device)
        for width in (64,) if small else (2048, 4096, 16_384):
            what, size = f"ours_aopd, tiles {width} wide, hidden {hidden}", Size(4096, 151_936, hidden)
            size = Size(128, 4096, hidden) if small else size
            yield what, lambda w=what, s=size, v=width: _operation("ours_aopd", w, s, device, v)
        yield f"gradient error, hidden {hidden}", lambda h=hidden: _errors(Size(128, 4096, h), device)


def _measurable(who: str, device: str) -> bool:
    """Return whether a peer is here; on a CPU ours has no kernels, and Liger's do not run."""
    if who == "trl":
        return installed()
    return who in ("ours", "dense") or (device == "cuda" and (who == "tiled" or find_spec("liger_kernel") is not None))


def _operation(name: str, what: str, size: Size, device: str, width: int | None = None) -> Iterator[Figure]:
    """Measure a variant; one that is called tiled has no kernels, and `width` is that of its tiles."""
    kernels, tile = set(output_layer.FUSED), tiles.LARGE_TILE
    output_layer.FUSED = set() if what.startswith("tiled") else kernels
    tiles.LARGE_TILE = tile if width is None else (tile[0], width)
    try:
        found = measured(VARIANTS[name], size, device)
    finally:
        output_layer.FUSED, tiles.LARGE_TILE = kernels, tile
    products = OPERATIONS[name.partition("_")[2]][1]
    yield Figure(f"{what}: time", 1000 * found.seconds, "ms")
    yield Figure(f"{what}: memory", found.bytes / MIB, "MiB")
    operations = 2 * products * size.tokens * size.hidden * size.vocabulary
    yield Figure(f"{what}: rate, recomputation counted", operations / found.seconds / 1e9, "GFLOP/s", "more")


def _errors(size: Size, device: str) -> Iterator[Figure]:
    """Yield the error of OPD's gradient against float64, relative to its size, of ours, of full logits and of TRL's."""
    inputs = make_inputs(size, device)
    states, weight = (leaf.detach().double().requires_grad_() for leaf in (inputs.hidden, inputs.weight))
    exact = replace(inputs, hidden=states, weight=weight, logp=inputs.logp.double())
    _one_token(exact, (states @ weight.T).log_softmax(-1)).backward()
    assert states.grad is not None
    works: dict[str, Callable[[Inputs], Tensor]] = {
        "ours": VARIANTS["ours_opd"],
        "dense": lambda fresh: _one_token(fresh, (fresh.hidden @ fresh.weight.T).float().log_softmax(-1)),
        **({"trl": VARIANTS["trl_opd"]} if installed() else {}),
    }
    for who, work in works.items():
        fresh = inputs.first(size.tokens)
        work(fresh).backward()
        assert fresh.hidden.grad is not None
        error = (fresh.hidden.grad.double() - states.grad).norm() / states.grad.norm()
        yield Figure(f"gradient error of {who}, hidden {size.hidden}", float(error), "of its size")


def _one_token(inputs: Inputs, logq: Tensor) -> Tensor:
    """Return OPD's loss from log-probabilities over the vocabulary."""
    own, none = logq.gather(-1, inputs.ids[:, :1])[:, 0], logq[:, :0]
    return OPD().token_losses(Tokens(own, own.detach(), inputs.logp[:, 0], none, none)).losses.mean()


def _generations(device: str, small: bool) -> Iterator[Work]:
    """Yield the measures of generation: on fixed tensors, with a growing cache, and by transformers' `generate`."""
    shape = "small" if small else "0.6B"
    student, _, load = (SMALL if small else SHAPES)[shape]
    for way in ("fixed tensors", "growing cache", "transformers generate"):
        what = f"generation, {shape}, {load.prompts} sequences, {way}"
        yield what, lambda w=way, n=what: _generation(w, n, student, load, device)


def _generation(way: str, what: str, shape: Shape, load: Load, device: str) -> Iterator[Figure]:
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
    yield Figure(f"{what}: time", 1000 * (time.perf_counter() - started) / load.response, "ms a token of all sequences")


def _steps(device: str, small: bool, *shapes: str) -> Iterator[Work]:
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


def _trl_steps(device: str, small: bool) -> Iterator[Work]:
    """Yield the measure of TRL's step at the first shape."""
    shape, (student, teacher, load) = next(iter((SMALL if small else SHAPES).items()))
    if installed():
        yield f"TRL step, {shape}", lambda: _trl_step(f"TRL step, {shape}", student, teacher, load, device)


def _trl_step(what: str, student: Shape, teacher: Shape, load: Load, device: str) -> Iterator[Figure]:
    from benchmarks.device.random_trl_step import trl_random_steps

    models = random_model(student, torch.float32, device), random_model(teacher, torch.bfloat16, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = trl_random_steps(*models, load, device, min(16, load.prompts))
    for phase, seconds in (("generate", steps.generate), ("teacher", steps.teacher), ("rest", steps.rest)):
        yield Figure(f"{what}: {phase}", seconds, "s")
    yield Figure(f"{what}: step", steps.generate + steps.teacher + steps.rest, "s")
    if device == "cuda":
        yield Figure(f"{what}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


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
