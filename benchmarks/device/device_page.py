"""The page of one device: its goals with what was measured, the operation next to its peers, and every figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.device.device_figures import DeviceFigure
from benchmarks.results_page import table

PEAK = "fastest bfloat16 product"
NEEDED, COMPUTED = "needed products", "recomputed ones counted"
HEAD_MIB_A_COLUMN = 151_936 * 2 / 2**20
PEERS = {"ours": "ours", "tiled": "ours, no kernels", "dense": "full logits", "trl": "TRL", "liger": "Liger"}


@dataclass(frozen=True)
class Goal:
    """What a device has to reach: a value of at most, or at least, the bound; nan where it was not measured."""

    what: str
    value: float
    bound: float
    side: Literal["at most", "at least"] = "at most"

    @property
    def reached(self) -> str:
        """Return yes, no, or that nothing was measured."""
        if math.isnan(self.value):
            return "not measured"
        return "yes" if (self.value <= self.bound) == (self.side == "at most") else "**no**"


def goals(found: Mapping[str, float]) -> Iterator[Goal]:
    """Yield the goals, set for an H100, from figures by name."""

    def of(name: str) -> float:
        return found.get(name, math.nan)

    for hidden, most in ((1024, 9), (4096, 34)):
        yield Goal(f"AOPD, hidden {hidden}: ms, forward and backward", of(f"ours_aopd, hidden {hidden}: time"), most)
    share = of(f"ours_aopd, hidden 1024: {COMPUTED}") / of(PEAK)
    yield Goal(
        "AOPD, hidden 1024: share of the fastest product's rate, recomputed products counted", share, 0.7, "at least"
    )
    yield Goal("teacher, hidden 1024: ms", of("ours_teacher, hidden 1024: time"), 4)
    for hidden in (1024, 4096):
        where = f"hidden {hidden}"
        yield Goal(
            f"AOPD over OPD, {where}: time", of(f"ours_aopd, {where}: time") / of(f"ours_opd, {where}: time"), 1.02
        )
        for kind, name in (("reverse_kl", "reverse KL"), ("jsd", "JSD")):
            times = of(f"ours_{kind}, {where}: time"), of(f"trl_{kind}, {where}: time")
            yield Goal(f"{name} over TRL's, {where}: time", times[0] / times[1], 1)
        beyond = of(f"ours_aopd, {where}: memory") - hidden * HEAD_MIB_A_COLUMN
        full = of(f"dense_aopd, {where}: memory")
        yield Goal(f"AOPD beyond the head's gradient over full logits, {where}: memory", beyond / full, 0.125)
        errors = of(f"gradient error of ours, {where}"), of(f"gradient error of trl, {where}")
        yield Goal(f"error of OPD's gradient over TRL's, {where}", errors[0] / errors[1], 1)
    yield Goal(
        "generation, 64 sequences at 0.6B: ms a token of all",
        of("generation, 0.6B, 64 sequences, fixed tensors: time"),
        6,
    )


def page(name: str, made: str, figures: Sequence[DeviceFigure], left_out: Sequence[str]) -> str:
    """Return the page; `made` says how the figures came about."""
    found = {figure.name: figure.value for figure in figures}
    wanted = [[g.what, _number(g.value), f"{g.side} {g.bound:g}", g.reached] for g in goals(found)]
    every = [[figure.name, _number(figure.value), figure.unit, figure.better] for figure in figures]
    parts = [
        f"# Benchmarks: {name}",
        made,
        "## Goals, set for an H100",
        table(["goal", "measured", "wanted", "reached"], wanted),
        "## The operation next to its peers",
        table(["operation", *PEERS.values()], [*_operations(found)]),
        "Each cell: milliseconds; MiB beyond the inputs; share of the fastest product's rate, products that full logits need.",
        "## Every figure",
        table(["measured", "value", "unit", "better"], every),
        "\n".join(f"- left out: {line}" for line in left_out),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _operations(found: Mapping[str, float]) -> Iterator[list[str]]:
    """Yield a row for each operation and hidden size that was measured."""
    peak = found.get(PEAK, math.nan)
    wheres = [name.removeprefix("ours_").removesuffix(": time") for name in found if name.startswith("ours_")]
    for where in dict.fromkeys(where for where in wheres if ": " not in where and "tiles" not in where):
        cells: list[str] = []
        for who in PEERS:
            time, memory, rate = (found.get(f"{who}_{where}: {what}", math.nan) for what in ("time", "memory", NEEDED))
            cells.append("" if math.isnan(time) else f"{_number(time)}; {memory:,.0f}; {rate / peak:.2f}")
        yield [where, *cells]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.4g}"
