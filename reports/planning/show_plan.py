"""Show a plan: as tables on a terminal of 80 columns, as CSV, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from harness.stats.power import POWER
from harness.terminal.fitted_table import FittedTable
from reports.claims.planned_looks import list_looks
from reports.data.csv_text import to_csv_text
from reports.figures import style
from reports.figures.draw_power import draw_power
from reports.formatting import format_effect, format_hours
from reports.planning.pilot import NoPlan
from reports.planning.power_plan import (
    SEEDS_SHOWN,
    ClaimPlan,
    Resolution,
    power_curve_of,
)

INDENT = "  "  # before the row on equivalence, which belongs to the claim above
NO_MARGIN = Resolution(math.nan, math.nan, math.nan, {})
PARTS = ("seeds", "clusters", "interaction", "answers")


def print_power_plan(console: Console, plans: Sequence[ClaimPlan | NoPlan], hours: float, looks: Sequence[int]) -> None:
    """Print the variances, what several numbers of seeds find, the cheapest designs, and what is not resolved."""
    planned = [plan for plan in plans if isinstance(plan, ClaimPlan)]
    if planned:
        for source in dict.fromkeys(plan.subject.source for plan in planned):
            _say(console, f"variances: {source}")
        console.print(FittedTable(_variances(planned), ["answer", "looked at"]))
        console.print(FittedTable(_detectable(planned), [f"{SEEDS_SHOWN[-1]} seeds"]))
        console.print(FittedTable(_designs(planned, hours), ["power"]))
    if best := [plan.subject for plan in planned if plan.subject.best_rate]:
        factors = ", ".join(f"{best[0].widening(seeds):.2f} times with {seeds} seeds" for seeds in SEEDS_SHOWN)
        named = ", ".join(subject.name for subject in best)
        _say(
            console,
            f"at the best learning rate ({named}): planned as if the halves of the seeds chose different rates, which makes "
            f"intervals wider, {factors}",
        )
    for plan in plans:
        if plan.sentence:
            _say(console, plan.sentence)
    if looks:
        _say(console, f"{list_looks(looks)} Stop at the first look that finds the effect.")
    _say(console, "hours are of runs one after another; side by side, divide by how many run at a time")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, emoji=False)


def _variances(plans: Sequence[ClaimPlan]) -> Table:
    table = Table(title="standard deviation of the difference, by source")
    table.add_column("claim", overflow="fold", min_width=14)
    for name in ("unit", "seeds", "items", "seed × item", "answer", "looked at"):
        table.add_column(name, justify="right")
    for plan in plans:
        subject = plan.subject
        parts = [math.sqrt(getattr(subject.components, part)) * subject.scale for part in PARTS]
        shown = [format_effect(parts[0]), *(format_effect(part) if subject.items else "–" for part in parts[1:])]
        if subject.items and subject.components.answers == 0:
            shown[-1] = "–"
        design = subject.design
        looked = f"{design.seeds} × {design.clusters} × {design.answers}" if subject.items else f"{design.seeds}"
        table.add_row(subject.name, subject.unit, *shown, looked)
    return table


def _detectable(plans: Sequence[ClaimPlan]) -> Table:
    title = f"smallest difference that is found with {100 * POWER:.0f} % power"
    equal = any(plan.equivalence for plan in plans)
    table = Table(title=title + ", and smallest margin within which equal methods are shown to be equal" * equal)
    table.add_column("claim", overflow="fold", min_width=14)
    table.add_column("items × answers", justify="right")
    for seeds in SEEDS_SHOWN:
        table.add_column(f"{seeds} seeds", justify="right")
    for plan in plans:
        size = f"{plan.own.clusters} × {plan.own.answers}" if plan.subject.items else "–"
        table.add_row(plan.subject.name, size, *map(format_effect, plan.difference.by_seeds.values()))
        if plan.equivalence is not None:
            table.add_row(f"{INDENT}equal", size, *(f"±{format_effect(x)}" for x in plan.equivalence.by_seeds.values()))
    return table


def _designs(plans: Sequence[ClaimPlan], hours: float) -> Table:
    within = f" within {hours:g} hours" if math.isfinite(hours) else ""
    equal = any(plan.equivalence for plan in plans)
    shows = ", or show equal methods to be equal within ± the margin" * equal
    table = Table(title=f"cheapest designs that find the effect{shows}{within}")
    table.add_column("claim", overflow="fold", min_width=14)
    for name in ("effect", "seeds", "items", "answers", "hours", "power"):
        table.add_column(name, justify="right")
    for plan in plans:
        if plan.difference.size:
            _add_designs(table, plan, plan.difference, plan.subject.name, f"{plan.difference.size:g}")
        if plan.equivalence is not None:
            name = f"{INDENT}equal" if plan.difference.size else f"{plan.subject.name}, equal"
            _add_designs(table, plan, plan.equivalence, name, f"±{plan.equivalence.size:g}")
    return table


def _add_designs(table: Table, plan: ClaimPlan, wanted: Resolution, name: str, size: str) -> None:
    if not wanted.cheapest:
        table.add_row(name, size, "none", "", "", "", "")
    for place, found in enumerate(wanted.cheapest):
        design = found.design
        items = (str(design.clusters), str(design.answers)) if plan.subject.items else ("–", "–")
        first = (name, size) if place == 0 else ("", "")
        table.add_row(*first, str(design.seeds), *items, format_hours(found.hours), f"{100 * found.power:.0f} %")


def write_power_plan(plans: Sequence[ClaimPlan | NoPlan], folder: Path, hours: float) -> list[Path]:
    """Write the plan's rows and curves as CSV and the curves as PNG and SVG; return the files."""
    planned = [plan for plan in plans if isinstance(plan, ClaimPlan)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "claim": plan.subject.name,
            "unit": plan.subject.unit,
            "source": plan.subject.source,
            **{f"variance_{part}": getattr(plan.subject.components, part) for part in PARTS},
            "pilot_seeds": plan.subject.design.seeds,
            "clusters": plan.own.clusters if plan.subject.items else None,
            "answers": plan.own.answers,
            "seeds": plan.own.seeds,
            "widening": plan.subject.widening(plan.own.seeds),
            **_columns(plan.difference, "effect", "detectable", ""),
            **_columns(plan.equivalence or NO_MARGIN, "margin", "smallest_margin", "equal_"),
        }
        for plan in planned
    ]
    most = hours if math.isfinite(hours) else max(map(_longest, planned), default=1.0)
    curves = pd.DataFrame(
        [
            {"claim": plan.subject.name, "unit": plan.subject.unit, "hours": each, "detectable": found}
            for plan in planned
            for each, found in power_curve_of(plan, most)
        ]
    )
    files = {"plan.csv": pd.DataFrame(rows), "plan_curve.csv": curves}
    for name, table in files.items():
        (folder / name).write_text(to_csv_text(table), encoding="utf-8")
    written = [folder / name for name in files]
    if not curves.empty and curves["hours"].notna().any():
        effects = {plan.subject.unit: plan.difference.size for plan in planned if plan.difference.size}
        style.save_figure(draw_power(curves, effects), folder / "plan")
        written += [folder / "plan.png", folder / "plan.svg"]
    return written


def _columns(wanted: Resolution, size: str, smallest: str, prefix: str) -> dict[str, float | int | None]:
    """Return the columns of one of a claim's questions."""
    best = wanted.any_cost
    return {
        size: wanted.size,
        f"{prefix}power": wanted.power,
        smallest: wanted.smallest,
        f"{prefix}fewest_seeds": wanted.own_items,
        f"{prefix}cheapest_seeds": best.design.seeds if best else None,
        f"{prefix}cheapest_seeds_from": wanted.seeds_between[0],
        f"{prefix}cheapest_seeds_to": wanted.seeds_between[1],
        f"{prefix}cheapest_clusters": best.design.clusters if best else None,
        f"{prefix}cheapest_answers": best.design.answers if best else None,
        f"{prefix}cheapest_hours": best.hours if best else None,
    }


def _longest(plan: ClaimPlan) -> float:
    """Return how many hours a curve covers: those of the cheapest design that finds the effect, or of 20 seeds if more."""
    hours, best = plan.subject.costs.hours(replace(plan.own, seeds=SEEDS_SHOWN[-1])), plan.difference.any_cost
    return max(hours, best.hours) if best else hours
