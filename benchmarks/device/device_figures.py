"""Figures of one device in a file, and what got worse between two files: `make bench-compare`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

WORSE = 0.10
Better = Literal["less", "more"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class DeviceFigure:
    """One measured value, its unit, and whether less of it or more of it is better."""

    name: str
    value: float
    unit: str
    better: Better = "less"


DeviceMeasure = tuple[str, Callable[[], Iterator[DeviceFigure]]]


def write_figures(path: Path, device: str, figures: list[DeviceFigure]) -> None:
    """Write figures as JSON, one a line."""
    lines = ",\n".join(f"  {json.dumps(asdict(figure))}" for figure in figures)
    path.write_text(f'{{"device": {json.dumps(device)}, "figures": [\n{lines}\n]}}\n', encoding="utf-8")


def read_figures(path: Path) -> tuple[str, dict[str, DeviceFigure]]:
    """Return a file's device and its figures by name."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    figures = [DeviceFigure(**line) for line in raw["figures"]]
    return raw["device"], {figure.name: figure for figure in figures}


def change(before: DeviceFigure, after: DeviceFigure) -> float:
    """Return by what share a figure got worse; below 0 where it got better."""
    ratio = after.value / before.value if before.value else 1.0
    return ratio - 1 if before.better == "less" else 1 / ratio - 1 if ratio else float("inf")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A file of benchmarks/baselines.", exists=True)],
    after: Annotated[Path, typer.Argument(help="The same, made now.", exists=True)],
) -> None:
    """Print every figure's change; exit with 1 where one got worse by more than 10 %, or is missing."""
    (device, old), (other, new) = read_figures(before), read_figures(after)
    if device != other:
        raise typer.BadParameter(f"{before} is of {device} and {after} of {other}; compare figures of one device")
    failed = False
    for name, figure in old.items():
        if name not in new:
            typer.echo(f"MISSING  {name}")
            failed = True
            continue
        worse = change(figure, new[name])
        failed |= worse > WORSE
        mark = "WORSE" if worse > WORSE else "better" if worse < -WORSE else "same"
        typer.echo(f"{mark:8} {name}: {figure.value:.4g} -> {new[name].value:.4g} {figure.unit} ({worse:+.1%} worse)")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
