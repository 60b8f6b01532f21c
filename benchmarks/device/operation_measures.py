"""Measures of the log-probability operation on one device: ours, without kernels, full logits, TRL's and Liger's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

from torch import Tensor

from adapters.loop.tokens import Tokens
from adapters.opd import OPD
from benchmarks.device.device_figures import DeviceFigure, DeviceMeasure
from benchmarks.device.device_page import COMPUTED, NEEDED
from benchmarks.logprobs.logprob_variants import VARIANTS, Inputs, Size, make_inputs
from benchmarks.logprobs.logprob_work import measured
from benchmarks.trl_step import installed
from harness.lm import output_layer, tiles

MIB = 2**20
# Of each variant: tokens, and the products of (N, H) and (H, V) that full logits need and that ours computes.
OPERATIONS = {
    "aopd": (4096, 3, 4), "opd": (4096, 3, 4), "teacher": (4096, 1, 1), "reverse_kl": (1024, 4, 6), "jsd": (1024, 4, 6),
}  # fmt: skip


def operations(device: str, small: bool, *sizes: int) -> Iterator[DeviceMeasure]:
    """Yield the measures of the log-probability operation: ours, without kernels, full logits, TRL's, Liger's."""
    for hidden in sizes:
        for kind, (tokens, *_) in OPERATIONS.items():
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


def _operation(name: str, what: str, size: Size, device: str, width: int | None = None) -> Iterator[DeviceFigure]:
    """Measure a variant; one that is called tiled has no kernels, and `width` is that of its tiles."""
    kernels, tile = set(output_layer.FUSED), tiles.LARGE_TILE
    output_layer.FUSED = set() if what.startswith("tiled") else kernels
    tiles.LARGE_TILE = tile if width is None else (tile[0], width)
    try:
        found = measured(VARIANTS[name], size, device)
    finally:
        output_layer.FUSED, tiles.LARGE_TILE = kernels, tile
    who, _, kind = name.partition("_")
    _, needed, computed = OPERATIONS[kind]
    if kind in ("reverse_kl", "jsd") and size.tokens <= tiles.whole_rows(size.vocabulary) // 2:
        computed = needed  # few tokens: the products are kept
    yield DeviceFigure(f"{what}: time", 1000 * found.seconds, "ms")
    yield DeviceFigure(f"{what}: memory", found.bytes / MIB, "MiB")
    product = 2 * size.tokens * size.hidden * size.vocabulary / found.seconds / 1e9
    yield DeviceFigure(f"{what}: {NEEDED}", needed * product, "GFLOP/s", "more")
    if who == "ours" and computed > needed:
        yield DeviceFigure(f"{what}: {COMPUTED}", computed * product, "GFLOP/s", "more")


def _errors(size: Size, device: str) -> Iterator[DeviceFigure]:
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
        yield DeviceFigure(f"gradient error of {who}, hidden {size.hidden}", float(error), "of its size")


def _one_token(inputs: Inputs, logq: Tensor) -> Tensor:
    """Return OPD's loss from log-probabilities over the vocabulary."""
    own, none = logq.gather(-1, inputs.ids[:, :1])[:, 0], logq[:, :0]
    return OPD().token_losses(Tokens(own, own.detach(), inputs.logp[:, 0], none, none)).losses.mean()
