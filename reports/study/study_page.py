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
from harness.pipeline.study import Plan
from reports.claims.judge import LEVEL, SEEDS
from reports.compare.rows import MARGIN
from reports.document.grids import hardware_grid, packages_grid
from reports.document.rendering import load_templates, publish
from reports.document.sentences import count_warnings, describe_overlap
from reports.figures import style
from reports.study import against as study_against
from reports.study import family as study_family
from reports.study import recipe as study_recipe
from reports.study import study_figures, study_training, study_views, study_words
from reports.study.data import RUN, Results, collect
from reports.study.pairs import FORGETTING, RETENTION, matching_sentences, varies_rates
from reports.study.study_claims import judged

DPI = 110


@dataclass(frozen=True)
class Drawing:
    """A figure on the page: file name, heading, what to look for, how it is drawn, and what its numbers say."""

    name: str
    title: str
    caption: str
    draw: Callable[[Results], Figure]
    reading: Callable[[Results], str] = lambda _: ""


DRAWINGS: list[Drawing] = [
    Drawing(
        "family",
        "Learning accuracy against forgetting",
        "Look up and to the left: learned more, forgot less. A colour stands for a well-known method and what is named after "
        "it, joined by a thin line; the others are dark grey. Filled marks are means over seeds, their bars run from "
        "the lowest to the highest and are no test; a hollow mark is one seed, so its place beside a filled one says "
        "little. Forgetting is Chaudhry's, so what a stage does to its own task counts as learning, and a method that "
        "learned less had less to lose.",
        study_family.family,
        study_family.family_reading,
    ),
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
    text = load_templates().get_template("study.md.j2").render(_context(results, drawings, page))
    (folder / page.name).write_text(text, encoding="utf-8")


def _draw(results: Results, drawing: Drawing, folder: Path) -> dict[str, Any]:
    """Save a figure and return what the page says of it; one without data is not drawn and not spoken of."""
    entry = {"name": drawing.name, "title": drawing.title, "caption": drawing.caption}
    try:
        style.save_png(drawing.draw(results), folder / f"{drawing.name}.png", DPI)
        return {**entry, "drawn": True, "reading": drawing.reading(results)}
    except RunError:
        return {**entry, "drawn": False, "reading": ""}


def _context(results: Results, drawings: dict[str, dict[str, Any]], page: Path) -> dict[str, Any]:
    study = results.plan.study
    return {
        "study": study,
        "folder": page.stem,
        "done": study_words.done(results),
        "made": study_words.made(results, page),
        "missing": results.missing,
        "claims": study_views.claims_grid(results) if judged(results) else None,
        "verdicts": study_views.claims_sentence(results),
        "beside": _beside(results),
        "drawings": drawings,
        "margin": f"{100 * MARGIN:g}",
        "seeds": SEEDS,
        "matchings": list(_matchings(results)),
        "pulls": {"grid": study_training.pulls_grid(results), "reading": study_training.pulls_sentence(results)},
        "warnings": {
            "sentence": count_warnings(results.frames),
            "grid": study_training.warnings_grid(results),
            "meaning": study_training.warnings_meaning(results),
        },
        "off_policy": results.off_policy,
        "factors": list(_factors(results)),
        "recipe": [study_recipe.checks_grid(results), study_recipe.recipe_grid(results)],
        "overlap": describe_overlap(results.frames),
        "provenance": [packages_grid(results.frames), hardware_grid(results.frames)],
    }


def _beside(results: Results) -> dict[str, Any]:
    """Return per factor of entries what is found beside the references, where three seeds allow it, and of how many."""
    factors = [factor for factor in results.plan.study.factors.values() if factor.of_entries]
    found = {factor.title: study_against.besides(results, factor) for factor in factors}
    sentences = {title: study_against.against_sentence(besides) for title, besides in found.items() if besides}
    return {"sentences": sentences, "count": 2 * sum(map(len, found.values())), "chance": LEVEL}


def _matchings(results: Results) -> Iterator[dict[str, Any]]:
    """Yield what is kept at matched learning, where there are learning rates to match."""
    for matching in (RETENTION, FORGETTING) if varies_rates(results) else ():
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
            besides = study_against.besides(results, factor) if factor.of_entries else []
            yield {
                "title": factor.title,
                "setting": study_words.setting(factor),
                "grid": study_views.factor_grid(results, name),
                "against": study_against.against_grid(besides) if besides else None,
                "sentence": study_views.factor_sentence(results, name),
            }
