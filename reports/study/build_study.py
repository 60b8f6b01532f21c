"""Build the page of a study from its finished runs: sections and blocks like a report's, as Markdown and HTML.

The files are `<page>.md`, `<page>.html`, and a folder of the same name with the figures and every run's numbers in `runs.csv`.
They are written to a scratch folder and then moved to their place, the pages last.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from harness.pipeline.sweeps.study_runs import Plan
from reports.claims.render_verdicts import count_exploratory, list_verdicts
from reports.data.csv_text import to_csv_text
from reports.document.rendering import publish
from reports.figures import style
from reports.report.page_writer import Page, write_page
from reports.study.page_sentences import describe_study
from reports.study.profile_blocks import describe_learned_and_ended
from reports.study.study_results import RUN, Results, collect
from reports.study.study_sections import study_sections
from reports.study.study_verdicts import claim_files, judge_study

DPI = 110


def build_study(plan: Plan, page: Path) -> Path:
    """Write a study's page, its figures and `runs.csv` from the finished runs, and return the page.

    Missing and unfinished runs are named and left out. Raises RunError where no run is finished or runs are not
    comparable.
    """
    results = collect(plan, plan.command(page))
    page.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=page.parent, prefix=".building-") as scratch:
        _write(results, Path(scratch), page.stem)
        publish(Path(scratch), page.parent)
    return page


def figures_by_run(results: Results) -> pd.DataFrame:
    """Return one row per point of the plan and figure, with factor, setting and the run's identity."""
    values = results.values.reset_index().melt(id_vars=RUN, var_name="figure").dropna(subset="value")
    keys = ["factor", "setting", "start", "learning_rate", *RUN]
    return results.points.merge(values, on=RUN, sort=False)[[*keys, "figure", "value"]]


def _write(results: Results, folder: Path, stem: str) -> None:
    verdicts = judge_study(results)
    with style.shared(results.frames.labelled):
        sections = study_sections(results, verdicts)
        opening = [*([count_exploratory(verdicts)] if verdicts else []), *describe_study(results)]
        profiles = dict.fromkeys(file.profile or results.profile for file in claim_files(results))
        ended = [sentence for profile in profiles for sentence in describe_learned_and_ended(results, profile)]
        write_page(
            Page(results.plan.study.title, [*list_verdicts(verdicts), *ended], opening, results.missing, sections),
            folder,
            stem,
            stem,
            dpi=DPI,
        )
    text = to_csv_text(figures_by_run(results), float_format="%.8g")
    (folder / stem / "runs.csv").write_text(text, encoding="utf-8")
