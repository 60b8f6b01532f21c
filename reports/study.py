"""The page of a study: what was done, what shows and what does not, figures, tables and where the numbers come from.

Written from the finished runs alone, beside its place and then moved there, the page last: `<page>.md`, and a folder of
the same name with the figures as PNG and every run's figures in `runs.csv`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from harness.errors import RunError
from harness.study import Plan
from reports import study_figures, study_views, study_words, style
from reports.build import environment, publish
from reports.study_claims import MARGIN, retention_sentences
from reports.study_data import RUN, Results, collect
from reports.views import hardware_grid, packages_grid
from reports.words import overlap

DPI = 110


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: file name, what to look for, how it is drawn, and what its numbers say."""

    name: str
    caption: str
    draw: Callable[[Results], Figure]
    reading: Callable[[Results], str]


DRAWINGS = [
    Drawing(
        "frontier",
        "Look for the method whose line lies further up and to the left: it learned more and forgot less. Where lines "
        "cross or bars overlap, neither is ahead. Bars run from the lowest to the highest seed; forgetting is Chaudhry's, "
        "so what a stage does to its own task counts as learning. Hollow marks: the other start. Dotted: one stage over "
        "all tasks, its average accuracy.",
        study_figures.frontier,
        study_words.frontier,
    ),
    Drawing(
        "training",
        "Look for a gap between the lines that lasts to the end of a stage, and for jumps where a new stage begins. "
        "Rolling mean of 5 steps within a stage; bands run from the lowest to the highest seed.",
        study_figures.training,
        study_words.training,
    ),
    Drawing(
        "threshold",
        "Look for where learning rises without entropy or forgetting rising with it. At τ = −1 every token takes forward "
        "KL, at τ = 1 every token takes OPD's loss, so the line should end on OPD's level.",
        study_figures.threshold,
        study_words.threshold,
    ),
    Drawing(
        "threshold_training",
        "Look for the routed share falling to zero, from where the run is OPD, and for thresholds whose entropy climbs "
        "within a stage.",
        study_figures.threshold_training,
        lambda _: "",
    ),
]


def build_study(plan: Plan, page: Path) -> Path:
    """Write a study's page, its figures and `runs.csv` from the finished runs, and return the page.

    Missing and unfinished runs are named and left out. Raises RunError where no run is finished or runs are not
    comparable.
    """
    results = collect(plan)
    page.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=page.parent, prefix=".building-") as scratch:
        _write(results, Path(scratch), page)
        publish(Path(scratch), page.parent)
    return page


def figures_by_run(results: Results) -> pd.DataFrame:
    """Return one row per point and figure, with factor, setting and everything that identifies the run."""
    values = results.values.reset_index().melt(id_vars=RUN, var_name="figure").dropna(subset="value")
    keys = ["factor", "setting", "start", "learning_rate", *RUN]
    return results.points.merge(values, on=RUN, sort=False)[[*keys, "figure", "value"]]


def _write(results: Results, folder: Path, page: Path) -> None:
    beside = folder / page.stem
    beside.mkdir()
    drawings = {drawing.name: _draw(results, drawing, beside) for drawing in DRAWINGS}
    figures_by_run(results).to_csv(beside / "runs.csv", index=False, float_format="%.8g")
    text = environment().get_template("study.md.j2").render(_context(results, drawings, page))
    (folder / page.name).write_text(text, encoding="utf-8")


def _draw(results: Results, drawing: Drawing, folder: Path) -> dict[str, Any]:
    """Save a figure and return what the page says of it; one without data gives the reason instead."""
    entry = {"name": drawing.name, "caption": drawing.caption, "reason": None}
    try:
        style.save_png(drawing.draw(results), folder / f"{drawing.name}.png", DPI)
        return {**entry, "reading": drawing.reading(results)}
    except RunError as error:
        return {**entry, "reading": "", "reason": str(error)}


def _context(results: Results, drawings: dict[str, dict[str, Any]], page: Path) -> dict[str, Any]:
    study = results.plan.study
    return {
        "study": study,
        "folder": page.stem,
        "done": study_words.done(results),
        "made": study_words.made(results),
        "missing": results.missing,
        "claims": study_views.claims_grid(results),
        "drawings": drawings,
        "margin": f"{100 * MARGIN:g}",
        "retention": retention_sentences(results),
        "pairs": study_views.pairs_grid(results),
        "factors": list(_factors(results)),
        "recipe": {"grid": study_views.recipe_grid(results), "sentence": study_views.recipe_sentence(results)},
        "overlap": overlap(results.frames),
        "provenance": [packages_grid(results.frames), hardware_grid(results.frames)],
    }


def _factors(results: Results) -> Iterator[dict[str, Any]]:
    present = set(results.points["factor"])
    for name, factor in results.plan.study.factors.items():
        if name in present:
            grid, sentence = study_views.factor_grid(results, name), study_views.factor_sentence(results, name)
            yield {"title": factor.title, "setting": study_words.setting(factor), "grid": grid, "sentence": sentence}
