"""The page of a study: what was done, what shows and what does not, figures, tables and where the numbers come from.

Written from the finished runs alone, beside its place and then moved there, the page last: `<page>.md`, and a folder of
the same name with the figures as PNG and every run's figures in `runs.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from harness.errors import RunError
from harness.study import Plan
from reports import study_figures, study_recipe, study_views, study_words, style
from reports.build import Drawing, environment, publish
from reports.study_claims import SEEDS
from reports.study_data import RUN, Results, collect
from reports.study_pairs import FORGETTING, MARGIN, RETENTION, matching_sentences
from reports.views import hardware_grid, packages_grid
from reports.words import overlap

DPI = 110


DRAWINGS: list[Drawing[Results]] = [
    Drawing(
        "frontier",
        "Learning accuracy against forgetting",
        "Look for the method whose line lies further up and to the left: it learned more and forgot less. Bars "
        "run from the lowest to the highest seed and are no test; the paired tables below are. Forgetting is Chaudhry's, so "
        "what a stage does to its own task counts as learning. Hollow marks: another start than the suite's. Dotted: one "
        "stage over all tasks, its average accuracy.",
        study_figures.frontier,
        study_words.frontier,
    ),
    Drawing(
        "training",
        "Entropy, routed share and truncation over training",
        "Look for a gap between the lines that lasts to the end of a stage, and for jumps where a new stage begins. "
        "Rolling mean of 5 steps within a stage; bands run from the lowest to the highest seed.",
        study_figures.training,
        study_words.training,
    ),
    Drawing(
        "threshold",
        "Learning, forgetting, entropy and routed share against the threshold",
        "Look for where learning rises without entropy or forgetting rising with it. At τ = −1 every token takes forward "
        "KL, at τ = 1 every token takes OPD's loss, so the line should end on OPD's level.",
        study_figures.threshold,
        study_words.threshold,
    ),
    Drawing(
        "threshold_training",
        "Training at each threshold",
        "Look for the routed share falling to zero, from where the run is OPD, and for thresholds whose entropy climbs "
        "within a stage.",
        study_figures.threshold_training,
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
    entry = {"name": drawing.name, "title": drawing.title, "caption": drawing.caption, "reason": None}
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
        "made": study_words.made(results, page),
        "missing": results.missing,
        "claims": study_views.claims_grid(results),
        "verdicts": study_views.claims_sentence(results),
        "drawings": drawings,
        "margin": f"{100 * MARGIN:g}",
        "seeds": SEEDS,
        "matchings": list(_matchings(results)),
        "off_policy": results.off_policy,
        "factors": list(_factors(results)),
        "recipe": [study_recipe.checks_grid(results), study_recipe.recipe_grid(results)],
        "overlap": overlap(results.frames),
        "provenance": [packages_grid(results.frames), hardware_grid(results.frames)],
    }


def _matchings(results: Results) -> Iterator[dict[str, Any]]:
    for matching in (RETENTION, FORGETTING):
        grid, sentences = study_views.pairs_grid(results, matching), matching_sentences(results, matching)
        yield {
            "title": f"{matching.outcome_as}, at matched {matching.learned_as}",
            "grid": grid,
            "sentences": sentences,
        }


def _factors(results: Results) -> Iterator[dict[str, Any]]:
    present = set(results.points["factor"])
    for name, factor in results.plan.study.factors.items():
        if name in present:
            grid, sentence = study_views.factor_grid(results, name), study_views.factor_sentence(results, name)
            yield {"title": factor.title, "setting": study_words.setting(factor), "grid": grid, "sentence": sentence}
