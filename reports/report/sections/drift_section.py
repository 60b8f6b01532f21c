"""The student's KL from the start against what it forgot (arXiv 2509.04259)."""

from __future__ import annotations

import math

import pandas as pd

from harness.rundir.reader import IDENTITY
from harness.stats.significance import rank_correlation
from reports.document.blocks import Picture, Section, Text
from reports.figures.draw_drift import DRIFT_TITLE, draw_drift
from reports.formatting import format_decimal
from reports.report.report_data import ReportData

CAPTION = (
    "One mark per run, stage and task, as the stage left it. Across: mean KL(start ‖ now) per token over the full "
    "vocabulary, on answers that the start sampled. Up: how far the task's score is below its best so far."
)
ABSENT = (
    "These runs did not record the KL to the start after each stage, so it cannot be compared with forgetting; runs "
    "of this version record it."
)


def make_section(report_data: ReportData) -> Section:
    """Return the section; it holds one sentence where the runs did not record the KL."""
    drift = report_data.frames.drift
    if drift["kl_to_start"].isna().all():
        return Section("drift", "KL to the start", DRIFT_TITLE, [Text(ABSENT, "missing")])
    rows = against_forgetting(drift, report_data.frames.scores)
    rank = rank_correlation(rows["kl_to_start"], rows["forgot"])
    texts = (
        []
        if math.isnan(rank)
        else [Text(f"Rank correlation (Spearman) over all marks: {format_decimal(rank)}.", "measured")]
    )
    picture = Picture(
        "drift", DRIFT_TITLE, CAPTION, lambda: draw_drift(rows), "Scatter of forgetting against the KL to the start."
    )
    return Section("drift", "KL to the start", DRIFT_TITLE, [picture, *texts])


def against_forgetting(drift: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the drift's rows after a stage with `forgot`: the task's best score up to that stage minus its score there."""
    keys = [*IDENTITY, "stage", "task"]
    ordered = scores.sort_values("stage", kind="stable")
    best = ordered.groupby([*IDENTITY, "task"])["score"].cummax()
    forgot = ordered.assign(forgot=best - ordered["score"])[[*keys, "forgot"]]
    return drift[drift["stage"] > 0].merge(forgot, on=keys)
