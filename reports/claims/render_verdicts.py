"""Verdicts on claims for readers: a table, and why a claim is not resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.stats.intervals import Interval, has_width, resolved
from harness.stats.verdicts import CONTRADICTED, MOST_SEEDS, NOT_RESOLVED, SEEDS, SUPPORTED
from reports.claims.claim_file import ClaimEntry, ClaimFile
from reports.claims.judge_claims import ClaimScope, Verdict, filled
from reports.compare.render_comparison import latex_table, markdown_table
from reports.data.csv_text import to_csv_text
from reports.document.blocks import Grid
from reports.document.sentences import (
    format_count,
    format_interval,
    format_nats,
    format_nats_change,
    format_p,
    format_percent,
    format_points,
)

RULE = (
    f"Supported: the 95 % t interval of the effect, paired over at least {SEEDS} seeds, lies wholly beyond the smallest "
    "effect of interest in the claimed direction. Contradicted: it lies wholly short of it. Both need a t test against that "
    "effect at 5 %, adjusted after Holm over all claims judged together. Otherwise not resolved; the seeds to resolve it are "
    f"those at which an effect of this size and spread is found with 80 % power; more than {MOST_SEEDS} are not counted."
)
WRITE: dict[str, tuple[Callable[[float], str], Callable[[float], str]]] = {
    "points": (format_percent, format_points),
    "nats": (format_nats, format_nats_change),
    "ratio": (format_nats, format_nats_change),
}


def verdicts_grid(found: Sequence[Verdict]) -> Grid:
    """Return the claims with what the source reports, the effect, its smallest size of interest, and the verdict strong."""
    header = ["claim", "reported", "effect [95 %]", "smallest", "seeds", "p, Holm", "verdict", "seeds to resolve"]
    rows = [_row(verdict) for verdict in found]
    if any(verdict.compared for verdict in found):
        header.insert(2, "compared here")
        rows = [[*row[:2], verdict.compared, *row[2:]] for row, verdict in zip(rows, found, strict=True)]
    return Grid("Claims", header, rows, frozenset((row, header.index("verdict")) for row in range(len(rows))))


def count_verdicts(found: Sequence[Verdict]) -> str:
    """Return which claims are supported, which are contradicted, and how many are neither."""
    supported, contradicted = (
        [claimed(each) for each in found if each.verdict == verdict] for verdict in (SUPPORTED, CONTRADICTED)
    )
    left = len(found) - len(supported) - len(contradicted)
    parts = [
        f"{len(each)} {verb}{' (' * bool(each)}{'; '.join(each)}{')' * bool(each)}"
        for verb, each in (("are supported", supported), ("are contradicted", contradicted))
    ]
    return (
        f"Of {format_count(len(found), 'row')}, {', '.join(parts)}, {left} are not resolved or could not be compared."
    )


def claimed(verdict: Verdict) -> str:
    """Return what is claimed at a place, in the claim's own words."""
    place = verdict.place
    start = f", {place.start} start" if place.start and not place.other else ""
    best = ", best learning rate" if verdict.entry.scope.rate == "best" else ""
    return f"{filled(verdict.entry.text, place)}{start}{best}"


def print_verdicts(console: Console, found: Sequence[Verdict]) -> None:
    """Print the verdicts."""
    grid = verdicts_grid(found)
    table = Table(title="Claims", title_justify="left", show_lines=True)
    for name in grid.header:
        table.add_column(Text(name))
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def write_verdicts(found: Sequence[Verdict], claims: Sequence[ClaimFile], folder: Path) -> list[Path]:
    """Write claims.md, with the rule of judgement, and claims.csv, in full precision, below `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in (("claims.md", "markdown"), ("claims.csv", "csv")):
        (folder / name).write_text(render_verdicts(found, claims, kind), encoding="utf-8")
    return [folder / "claims.md", folder / "claims.csv"]


def render_verdicts(found: Sequence[Verdict], claims: Sequence[ClaimFile], kind: str) -> str:
    """Return the verdicts in one of the formats of a comparison."""
    if kind == "csv":
        return to_csv_text(pd.DataFrame([_record(verdict) for verdict in found]))
    grid = verdicts_grid(found)
    table = pd.DataFrame(list(grid.rows), columns=pd.Index(grid.header))
    if kind == "latex":
        return latex_table(table, grid.title)
    sources = "\n".join(f"- {file.title}: {file.source}" for file in claims)
    return f"# Claims\n\n{sources}\n\n{RULE}\n\n{markdown_table(table)}\n"


def explain_verdict(verdict: Verdict) -> str:
    """Return the verdict, and after `not resolved` the reason: seeds, their width, or Holm's adjustment."""
    entry, effect = verdict.entry, verdict.effect
    if verdict.verdict != NOT_RESOLVED:
        return verdict.verdict
    return unresolved(effect, entry.unit, entry.parsed.sign * entry.smallest)


def unresolved(effect: Interval, unit: str, threshold: float = 0.0) -> str:
    """Say why there is no verdict: too few seeds, a wide interval, or Holm's adjustment."""
    if not has_width(effect, SEEDS):
        return f"{NOT_RESOLVED}: {f'fewer than {SEEDS} seeds' if effect.seeds < SEEDS else 'all seeds have the same effect'}"
    adjusted = " after Holm" if resolved(effect.beyond(threshold)) else ""
    return f"{NOT_RESOLVED}{adjusted} (half-width {half_width(effect, unit)} {unit})"


def half_width(interval: Interval, unit: str) -> str:
    """Write half the width of an interval in its unit, without the unit."""
    return WRITE[unit][0](interval.half_width)


def reported(entry: ClaimEntry, place: ClaimScope) -> str:
    """Return what the source reports for a place: a text, its figure, or the difference of its figures."""
    if isinstance(entry.reported, str):
        return entry.reported
    starts = [start for start in (place.start, place.other) if start]
    if not starts or not set(starts) <= set(entry.reported):
        return "–"
    value = entry.reported[starts[0]] - (entry.reported[starts[1]] if len(starts) > 1 else 0.0)
    where = f", {entry.reported_in}" if entry.reported_in else ""
    return f"{value:+.2f} {entry.unit}{where}".replace("-", "−", 1 if value < 0 else 0)


def _row(verdict: Verdict) -> list[str]:
    entry, effect = verdict.entry, verdict.effect
    write = WRITE[entry.unit][1]
    return [
        claimed(verdict),
        reported(entry, verdict.place),
        f"{format_interval(effect, write)} {entry.unit}" if effect.seeds else "–",
        f"{write(entry.parsed.sign * entry.smallest)}" if entry.smallest else "any",
        str(effect.seeds or "–"),
        format_p(verdict.adjusted),
        explain_verdict(verdict),
        _needed(verdict),
    ]


def _record(verdict: Verdict) -> dict[str, object]:
    entry, place, effect = verdict.entry, verdict.place, verdict.effect
    return {
        "claim": entry.name,
        "start": place.start,
        "other_start": place.other,
        "task": place.task,
        "expression": entry.expression,
        "unit": "share" if entry.unit == "points" else entry.unit,
        "effect": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "smallest_effect": entry.smallest,
        "seeds": effect.seeds,
        "p": verdict.p,
        "p_holm": verdict.adjusted,
        "verdict": verdict.verdict,
        "seeds_to_resolve": verdict.needed,
    }


def _needed(verdict: Verdict) -> str:
    """Write how many seeds would have resolved an effect of this size; nothing where a verdict was reached or seeds agree."""
    if verdict.verdict != NOT_RESOLVED or not has_width(verdict.effect):
        return "–"
    return f">{MOST_SEEDS}" if verdict.needed is None else str(verdict.needed)
