"""Training over its steps: entropy, routing with the tails of the advantage, and warnings."""

from __future__ import annotations

import pandas as pd

from reports.data.frames import ADVANTAGE
from reports.data.tables import advantage_table
from reports.document import grids, sentences
from reports.document.blocks import Folded, Grid, Picture, Section, Text
from reports.figures.curves import SMOOTHING
from reports.figures.draw_training import ENTROPY_TITLE, draw_advantage, draw_entropy, draw_training
from reports.formatting import (
    format_decimal,
    format_interval,
    format_nats,
    format_percent,
    format_pull,
    format_with_bounds,
)
from reports.report.report_data import ReportData

ENTROPY = (
    "Mean entropy of the student's next-token distribution (full vocabulary) at the answer tokens that it was trained on. "
    f"Rolling mean of {SMOOTHING} steps within a stage; the band runs from the lowest to the highest seed."
)
CALIBRATED = (
    "Policy − greedy: score of answers sampled at temperature 1 minus score of greedy answers, each task right after its own "
    "stage, mean over the tasks that both profiles evaluate and that no top_k or top_p of their own truncates. It is low for "
    "a method that keeps a high entropy without knowing better. Brackets are 95 % intervals for another seed and other items "
    "(entropy: over seeds; with one seed: over items alone). Entropy is the mean over training steps, for methods that train "
    "on their own answers alone."
)
ROUTED = (
    f"Share of answer tokens that took the forward KL instead of the policy gradient. Rolling mean of {SMOOTHING} steps "
    "within a stage; the band runs from the lowest to the highest seed."
)
TAILS = (
    "Advantage of the sampled token, log p(y) − log q(y). A token that is improbable under the teacher has a large negative "
    "advantage, without bound; the positive side is bounded, P(A ≥ a) ≤ e^−a. The axis is linear within ±0.1 and logarithmic "
    "elsewhere."
)


def make_entropy(report_data: ReportData) -> Section:
    """Return entropy through training."""
    title, steps = ENTROPY_TITLE, report_data.frames.steps
    alt = "Entropy of the student over training steps, by method, with the boundaries of stages."
    picture = Picture("entropy", title, ENTROPY, lambda: draw_entropy(steps), alt)
    table = report_data.calibration
    calibrated = [calibration_grid(table), Text(CALIBRATED, "note")] if len(table) else []
    return Section("entropy", "Entropy", title, [picture, *calibrated])


def calibration_grid(table: pd.DataFrame) -> Grid:
    """Return per method the mean entropy in training, and the score of sampled minus that of greedy answers."""
    rows = [
        [
            str(row["label"]),
            str(row["calibration"].seeds),
            format_interval(row["entropy"], format_nats),
            format_with_bounds(row["calibration"]),
            str(row["without"] or "–"),
        ]
        for row in table.to_dict("records")
    ]
    shown = 5 if table["without"].any() else 4
    header = ["method", "seeds", "entropy, nats", "policy − greedy, points", "without"][:shown]
    return Grid("Entropy and calibration", header, [row[:shown] for row in rows])


def make_routing(report_data: ReportData) -> Section | None:
    """Return the routed share and the advantage's quantiles; None where no step has either."""
    steps = report_data.frames.steps
    if steps[["routed_fkl", "advantage_q50"]].isna().all(axis=None):
        return None
    routed = steps.dropna(subset="routed_fkl")
    name = f"Tokens routed to forward KL, rolling mean of {SMOOTHING} steps within a stage"
    share = Picture(
        "routed",
        "Tokens routed to forward KL",
        ROUTED,
        lambda: draw_training(routed, "routed_fkl", "tokens routed to\nforward KL (%)", name, 100),
        "Share of tokens routed to forward KL over training steps, by method.",
        optional=True,
    )
    tails = Picture(
        "advantage",
        "The advantage's tails",
        TAILS,
        lambda: draw_advantage(steps),
        "Quantiles of the advantage over training steps, one panel per method; the table below holds their means.",
        optional=True,
    )
    readings = [Text(reading, "measured") for reading in read_tails(report_data)]
    table = Folded("Advantage and routed share as a table", [advantage_grid(report_data)])
    title = "Routed share and the advantage's tails"
    return Section("routing", "Routing and advantage", title, [share, tails, *readings, table])


def read_tails(report_data: ReportData) -> list[str]:
    """Return a sentence on the advantage's 1 % and 99 % quantiles; none where no step recorded both."""
    known = advantage_table(report_data.frames.own_steps).dropna(subset=["advantage_q01", "advantage_q99"])
    readings = [
        f"{row['label']} {format_decimal(row['advantage_q01'])} and {format_decimal(row['advantage_q99'], signed=True)} nats, "
        f"a ratio of {format_decimal(row['tail'])}"
        for row in known.to_dict("records")
    ]
    opening = "Advantage of the lowest and of the highest hundredth of tokens, mean over all steps"
    return [f"{opening}: {'; '.join(readings)}."] if readings else []


def advantage_grid(report_data: ReportData) -> Grid:
    """Return per method the advantage's mean and quantiles, its tail ratio and the routed share, over all steps."""
    names = [name.removeprefix("advantage_").replace("q0", "q").replace("q", "") for name in ADVANTAGE]
    header = ["method", "seeds", *(n if n == "mean" else f"{n} %" for n in names), "tail ratio", "routed %"]
    rows = [
        [
            str(row["label"]),
            str(row["seeds"]),
            *(format_pull(row[name]) for name in ADVANTAGE),
            format_pull(row["tail"]),
            format_percent(row["routed_fkl"]),
        ]
        for row in advantage_table(report_data.frames.own_steps).to_dict("records")
    ]
    return Grid("Advantage in nats, mean over steps and seeds; tail ratio: |1 %| over |99 %|", header, rows)


def make_warnings(report_data: ReportData) -> Section:
    """Return the warnings that training raised."""
    grid = grids.warnings_grid(report_data.frames)
    listed = [grid] if 0 < len(grid.rows) <= 10 else [Folded(f"All {len(grid.rows)}", [grid])] * bool(grid.rows)
    return Section("warnings", "Warnings", grid.title, [Text(sentences.count_warnings(report_data.frames)), *listed])
