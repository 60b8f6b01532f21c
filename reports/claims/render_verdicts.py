"""Verdicts on claims for readers: tables, one sentence, files, and why a claim has no verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.stats.claim_verdicts import EQUIVALENT, NOT_RESOLVED, NOT_TESTABLE, p_equivalent
from harness.stats.intervals import Interval, has_width
from harness.stats.looks import FEWEST_SEEDS
from reports.claims.claim_file import ClaimEntry, ClaimFile
from reports.claims.evidence import ClaimScope, fill
from reports.claims.judge_claims import EXPLORATORY, Verdict
from reports.data.csv_text import to_csv_text
from reports.document.blocks import Grid
from reports.document.text_tables import latex_table, markdown_table
from reports.formatting import (
    format_bounds,
    format_count,
    format_interval,
    format_nats,
    format_nats_change,
    format_p,
    format_percent,
    format_points,
)

NONE = "–"
RULE = (
    "Effect: its 95 % interval is for another seed and other items. Over seeds: the interval for another seed on the same "
    "items. Over items: the interval for other items with the same seeds. The primary claims of a file are tested in their "
    "order, each at 5 %, which its planned looks share. A later one is tested only if every testable claim before it "
    "showed a difference (a fixed sequence), so that all of them together err at 5 %. Tests are at the level of the look. "
    "Supported: the effect is larger than the smallest one of interest, in the claimed direction. Contradicted: it is "
    "smaller. Equivalent: two one-sided tests show that it lies within the margin. Not resolved: no test shows anything. "
    f"Not testable: these runs cannot test the claim, for example with fewer than {FEWEST_SEEDS} seeds. No verdict: "
    "no look was planned at this number of seeds. All other rows are exploratory: among many intervals, some exclude zero "
    "by chance. Where there are several starts, the first one is primary. The seeds of a suite share its teacher, its "
    "training records and its test items, so verdicts hold for this teacher and these records."
)
WRITE: dict[str, tuple[Callable[[float], str], Callable[[float], str]]] = {
    "points": (format_percent, format_points),
    "nats": (format_nats, format_nats_change),
    "ratio": (format_nats, format_nats_change),
}


def verdicts_grid(found: Sequence[Verdict]) -> Grid:
    """Return one row per verdict: profile, what the source reports, effect, its two intervals, and the verdict.

    The verdicts of primary claims are strong. Empty columns are left out.
    """
    columns: dict[str, Callable[[Verdict], str]] = {
        "claim": describe_claim,
        "profile": lambda row: row.profile or NONE,
        "reported": lambda row: format_reported(row.entry, row.place),
        "compared here": lambda row: row.compared or NONE,
        "effect [95 %]": _effect,
        "over seeds": lambda row: format_bounds(row.seeds, WRITE[row.entry.unit][1]),
        "over items": lambda row: format_bounds(row.items, WRITE[row.entry.unit][1]),
        "smallest": lambda row: WRITE[row.entry.unit][1](row.entry.parsed.sign * row.entry.smallest),
        "seeds": lambda row: str(row.effect.seeds or NONE),
        "p": lambda row: format_p(row.p),
        "verdict": explain_verdict,
    }
    if not any(row.entry.smallest for row in found):
        del columns["smallest"]
    cells = {name: [write(row) for row in found] for name, write in columns.items()}
    kept = {name: texts for name, texts in cells.items() if set(texts) != {NONE} or name == "verdict"}
    rows = list(zip(*kept.values(), strict=True))
    decided = frozenset((row, list(kept).index("verdict")) for row, each in enumerate(found) if each.primary)
    return Grid("Claims", list(kept), rows, decided)


def list_verdicts(found: Sequence[Verdict]) -> list[str]:
    """Return a sentence on every primary claim, in the order of testing."""
    shown = [each for each in found if each.primary]
    return [
        f"Primary claim {place}{f', {each.profile} decoding' if each.profile else ''}: {describe_claim(each)}: "
        f"{_conclusion(each)}."
        for place, each in enumerate(shown, start=1)
    ]


def count_exploratory(found: Sequence[Verdict]) -> str:
    """Return a sentence on how many claims are tested in order, and how many rows are exploratory."""
    primary, others = sum(each.primary for each in found), sum(not each.primary for each in found)
    tested = f"{format_count(primary, 'primary claim')} tested in order" if primary else "No claim is primary"
    return f"{tested}; {format_count(others, 'row')} {'is' if others == 1 else 'are'} exploratory."


def _conclusion(row: Verdict) -> str:
    """Return the verdict, with the effect where it was measured over several seeds."""
    return f"{explain_verdict(row)}, {_effect(row)}" if row.effect.seeds > 1 else explain_verdict(row)


def describe_claim(verdict: Verdict) -> str:
    """Return the claim's own text for the place of a row, with start, learning rate and equal learning where they apply."""
    place = verdict.place
    start = f", {place.start} start" if place.start and not place.other else ""
    best = ", best learning rate" if verdict.entry.scope.rate == "best" else ""
    equal = ", at equal learning" if verdict.entry.at == "equal_learning" else ""
    return f"{fill(verdict.entry.text, place)}{start}{best}{equal}"


def print_verdicts(console: Console, found: Sequence[Verdict]) -> None:
    """Print the rows with the columns that fit a terminal; `write_verdicts` writes all columns."""
    table = Table(title="Claims", title_justify="left", box=box.SIMPLE, show_lines=True)
    for name in ("claim", "effect [95 %]\nprofile, seeds", "verdict"):
        table.add_column(Text(name))
    for row in found:
        basis = ", ".join(
            filter(None, [row.profile, format_count(row.effect.seeds, "seed") if row.effect.seeds else ""])
        )
        table.add_row(*map(Text, (describe_claim(row), f"{_effect(row)}\n{basis}", explain_verdict(row))))
    console.print(table)


def write_verdicts(
    found: Sequence[Verdict], claims: Sequence[ClaimFile], folder: Path, registered: Sequence[str] = ()
) -> list[Path]:
    """Write claims.md, with the rule of judgement, and claims.csv, in full precision, below `folder`; return the files.

    `registered` holds sentences per claims file on when it was registered and at which looks it is judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in (("claims.md", "markdown"), ("claims.csv", "csv")):
        (folder / name).write_text(render_verdicts(found, claims, kind, registered), encoding="utf-8")
    return [folder / "claims.md", folder / "claims.csv"]


def render_verdicts(
    found: Sequence[Verdict], claims: Sequence[ClaimFile], kind: str, registered: Sequence[str] = ()
) -> str:
    """Return the verdicts as `markdown`, `csv` or `latex`."""
    if kind == "csv":
        return to_csv_text(pd.DataFrame([_record(verdict) for verdict in found]))
    grid = verdicts_grid(found)
    table = pd.DataFrame(list(grid.rows), columns=pd.Index(grid.header))
    if kind == "latex":
        return latex_table(table, grid.title)
    lines = zip(claims, registered or [""] * len(claims), strict=True)
    sources = "\n".join(f"- {file.title}: {file.source}. {when}".rstrip() for file, when in lines)
    return f"# Claims\n\n{sources}\n\n{RULE}\n\n{markdown_table(table)}\n"


def explain_verdict(row: Verdict) -> str:
    """Return the verdict with what explains it: the margin of equivalence, the half-width, or why it cannot be tested."""
    entry, effect = row.entry, row.effect
    if row.reason:
        return f"{row.verdict if row.primary else f'{EXPLORATORY}, {NOT_TESTABLE}'}: {row.reason}"
    if row.verdict == EQUIVALENT:
        return f"{EQUIVALENT} within {entry.margin:g} {entry.unit} (p {format_p(p_equivalent(effect, entry.zone))})"
    if row.verdict == NOT_RESOLVED:
        width = f"half-width {half_width(effect, entry.unit)} {entry.unit}"
        return f"{NOT_RESOLVED} ({width if has_width(effect) else 'all seeds and items have the same effect'})"
    return row.verdict


def half_width(interval: Interval, unit: str) -> str:
    """Write half the width of an interval in `unit`, without the unit's name."""
    return WRITE[unit][0](interval.half_width)


def format_reported(entry: ClaimEntry, place: ClaimScope) -> str:
    """Return what the source reports for a place: a text, its figure, or the difference of its figures."""
    if isinstance(entry.reported, str):
        return entry.reported
    starts = [start for start in (place.start, place.other) if start]
    if not starts or not set(starts) <= set(entry.reported):
        return "–"
    value = entry.reported[starts[0]] - (entry.reported[starts[1]] if len(starts) > 1 else 0.0)
    where = f", {entry.reported_in}" if entry.reported_in else ""
    return f"{value:+.2f} {entry.unit}{where}".replace("-", "−", 1 if value < 0 else 0)


def _effect(row: Verdict) -> str:
    if not row.effect.seeds:
        return NONE
    return f"{format_interval(row.effect, WRITE[row.entry.unit][1])} {row.entry.unit}"


def _record(row: Verdict) -> dict[str, object]:
    entry, place, effect = row.entry, row.place, row.effect
    return {
        "claim": entry.name,
        "primary": row.primary,
        "profile": row.profile,
        "start": place.start,
        "other_start": place.other,
        "task": place.task,
        "expression": entry.expression,
        "at": entry.at,
        "rate": entry.scope.rate,
        "unit": "share" if entry.unit == "points" else entry.unit,
        "effect": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "seeds_low": row.seeds.low,
        "seeds_high": row.seeds.high,
        "items_low": row.items.low,
        "items_high": row.items.high,
        "smallest_effect": entry.smallest,
        "margin": entry.zone,
        "seeds": effect.seeds,
        "p": row.p,
        "p_equivalent": p_equivalent(effect, entry.zone),
        "looked": row.looked,
        "level": row.level,
        "verdict": row.verdict,
        "reason": row.reason,
    }
