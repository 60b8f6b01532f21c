"""Training over its steps: entropy, routing and the advantage's tails, pulls, agreement with the teacher, and warnings."""

from __future__ import annotations

from reports.data.frames import ADVANTAGE
from reports.data.tables import advantage
from reports.document import grids as views
from reports.document import sentences as words
from reports.document.blocks import Folded, Grid, Picture, Section, Text
from reports.document.sentences import decimal, percent
from reports.figures import pulls as pull
from reports.figures import scores as figures
from reports.figures.training import advantage_tails
from reports.report.report_data import ReportData

ENTROPY = (
    "Mean entropy of the student's next-token distribution (full vocabulary) at the answer tokens it was trained "
    "on, smoothed by a rolling mean of 5 steps within a stage. The band runs from the lowest to the highest seed."
)
ROUTED = (
    "Share of answer tokens that took the forward KL instead of the policy gradient. Rolling mean of 5 steps within "
    "a stage; the band runs from the lowest to the highest seed."
)
TAILS = (
    "Advantage of the sampled token, log p(y) − log q(y). A token that the teacher would hardly write has a large "
    "negative one, without bound; the positive side is bounded, P(A ≥ a) ≤ e^−a. Linear within ±0.1, logarithmic "
    "beyond."
)
PULLS = (
    "Look for a method that pulls down harder than another: it pushes a confident student back, and noise around "
    "the teacher drifts to higher entropy. pull = −∂L/∂z_v, how hard a step of descent raises the logit of v, the "
    "teacher's first choice. Up: mean over the response tokens of pull where q(v) < p(v), else 0; down: mean of "
    "−pull where q(v) ≥ p(v), else 0; q student, p teacher. On two tokens AOPD pulls up by 2 (1−q)(p−q) and down by "
    "2 q (q−p), to first order: harder down where q is high. The student is mostly below its teacher, so compare "
    "methods, not up with down, whose scales differ. Single tokens are sampled, so a mean may be negative. Rolling "
    "mean of 5 steps within a stage; bands run from the lowest to the highest seed."
)
AGREEMENT = (
    "Above, the share of the teacher's K most probable tokens that are among the student's K; below, the "
    "probability that student (solid) and teacher (dashed) give these tokens; at the response tokens trained on. K "
    "is what the method asks of the teacher, 1 for OPD, so levels compare only at equal K; look at how lines move. "
    "Rolling mean of 5 steps within a stage; bands run from the lowest to the highest seed."
)


def entropy(report_data: ReportData) -> Section:
    """Return entropy through training."""
    title, steps = "Entropy through training", report_data.frames.steps
    alt = "Entropy of the student over training steps, by method, with the boundaries of stages."
    return Section(
        "entropy", "Entropy", title, [Picture("entropy", title, ENTROPY, lambda: figures.entropy_curves(steps), alt)]
    )


def routing(report_data: ReportData) -> Section | None:
    """Return the routed share and the advantage's tails; None where no step has either."""
    steps = report_data.frames.steps
    if steps[["routed_fkl", "advantage_q50"]].isna().all(axis=None):
        return None
    routed = steps.dropna(subset="routed_fkl")
    name = "Tokens routed to forward KL, rolling mean of 5 steps within a stage"
    share = Picture(
        "routed",
        "Tokens routed to forward KL",
        ROUTED,
        lambda: figures.training_curves(routed, "routed_fkl", "tokens routed to\nforward KL (%)", name, 100),
        "Share of tokens routed to forward KL over training steps, by method.",
        optional=True,
    )
    tails = Picture(
        "advantage",
        "The advantage's tails",
        TAILS,
        lambda: advantage_tails(steps),
        "Quantiles of the advantage over training steps, one panel per method; the table below holds their means.",
        optional=True,
    )
    told = [Text(reading, "measured") for reading in tails_reading(report_data)]
    table = Folded("Advantage and routed share as a table", [advantage_grid(report_data)])
    title = "Routed share and the advantage's tails"
    return Section("routing", "Routing and advantage", title, [share, tails, *told, table])


def tails_reading(report_data: ReportData) -> list[str]:
    """Return a sentence on where the lowest and the highest hundredth of the advantage lie; none where no step noted both."""
    known = advantage(report_data.frames.steps).dropna(subset=["advantage_q01", "advantage_q99"])
    told = [
        f"{row['label']} {decimal(row['advantage_q01'])} and {decimal(row['advantage_q99'], signed=True)} nats, "
        f"a ratio of {decimal(row['tail'])}"
        for row in known.to_dict("records")
    ]
    opening = "Advantage of the lowest and of the highest hundredth of tokens, mean over all steps"
    return [f"{opening}: {'; '.join(told)}."] if told else []


def advantage_grid(report_data: ReportData) -> Grid:
    """Return per method the advantage's mean and quantiles, its tail ratio and the routed share, over all steps."""
    names = [name.removeprefix("advantage_").replace("q0", "q").replace("q", "") for name in ADVANTAGE]
    header = ["method", "seeds", *(n if n == "mean" else f"{n} %" for n in names), "tail ratio", "routed %"]
    rows = [
        [
            str(row["label"]),
            str(row["seeds"]),
            *(pull.number(row[name]) for name in ADVANTAGE),
            pull.number(row["tail"]),
            percent(row["routed_fkl"]),
        ]
        for row in advantage(report_data.frames.steps).to_dict("records")
    ]
    return Grid("Advantage in nats, mean over steps and seeds; tail ratio: |1 %| over |99 %|", header, rows)


def pulls(report_data: ReportData) -> Section | None:
    """Return the pulls on the teacher's first choice; None where no step logged them."""
    frames = report_data.frames
    if frames.steps["pull_up"].isna().all():
        return None
    title, reading = "Pulls on the teacher's first choice", pull.pulls_reading(frames)
    picture = Picture("pulls", title, PULLS, lambda: pull.pull_curves(frames.steps), reading)
    return Section("pulls", "Pulls", title, [picture, Text(reading, "measured")])


def agreement(report_data: ReportData) -> Section | None:
    """Return the agreement with the teacher; None where no step logged it."""
    frames = report_data.frames
    if frames.steps["overlap"].isna().all():
        return None
    title, reading = "Agreement with the teacher", pull.agreement_reading(frames)
    picture = Picture("agreement", title, AGREEMENT, lambda: pull.agreement_curves(frames.steps), reading)
    return Section("agreement", "Agreement", title, [picture, Text(reading, "measured")])


def warnings(report_data: ReportData) -> Section:
    """Return what the guards raised in training."""
    grid = views.warnings_grid(report_data.frames)
    listed = [grid] if 0 < len(grid.rows) <= 10 else [Folded(f"All {len(grid.rows)}", [grid])] * bool(grid.rows)
    return Section("warnings", "Warnings", grid.title, [Text(words.training_warnings(report_data.frames)), *listed])
