"""The losses' pulls on the student and its agreement with the teacher over training, with their means in a sentence.

Methods without a teacher's scores, and step logs of earlier versions, have neither and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.rundir.reader import IDENTITY
from harness.stats.sampling import mean_ratio
from reports.data.frames import Frames
from reports.document.blocks import Picture, Section, Text
from reports.figures.curves import SMOOTHING
from reports.figures.draw_pulls import draw_agreement, draw_pulls
from reports.formatting import format_interval, format_nats, format_percent, format_pull
from reports.report.report_data import ReportData

PULLS = (
    "How hard a descent step pulls the logit of the teacher's first choice v: pull = −∂L/∂z_v. Up is the mean of the pull "
    "over response tokens, counting 0 where the student gives v at least the teacher's probability. Down is the mean of "
    "−pull, counting 0 where it gives v less. Compare methods: one that pulls down harder pushes a confident student back, "
    "and the noise around the teacher then drifts to higher entropy. Do not compare up with down: their scales differ, "
    "because the student is mostly below its teacher. With two tokens, student probability q and teacher probability p, the "
    "asymmetric loss of arXiv 2605.06387 pulls up by 2 (1−q)(p−q) and down by 2 q (q−p), to first order: harder down where "
    f"q is high. Tokens are sampled, so a mean may be negative. Rolling mean of {SMOOTHING} steps within a stage; bands run "
    "from the lowest to the highest seed."
)
AGREEMENT = (
    "The upper panel shows the share of the teacher's K most probable tokens that are among the student's K. The lower "
    "panel shows the probability that student (solid) and teacher (dashed) give these tokens. Both are means over the "
    "response tokens trained on. K differs between methods, so compare levels only at equal K, and look at how each line "
    f"changes. Rolling mean of {SMOOTHING} steps within a stage; bands run from the lowest to the highest seed."
)


def make_pulls(report_data: ReportData) -> Section | None:
    """Return the pulls on the teacher's first choice; None where no step logged them."""
    frames = report_data.frames
    if frames.steps["pull_up"].isna().all():
        return None
    title, reading = "Pulls on the teacher's first choice", read_pulls(frames)
    picture = Picture("pulls", title, PULLS, lambda: draw_pulls(frames.steps), reading)
    return Section("pulls", "Pulls", title, [picture, Text(reading, "measured")])


def make_agreement(report_data: ReportData) -> Section | None:
    """Return the agreement with the teacher; None where no step logged it."""
    frames = report_data.frames
    if frames.steps["overlap"].isna().all():
        return None
    title, reading = "Agreement with the teacher", read_agreement(frames)
    picture = Picture("agreement", title, AGREEMENT, lambda: draw_agreement(frames.steps), reading)
    return Section("agreement", "Agreement", title, [picture, Text(reading, "measured")])


def read_pulls(frames: Frames) -> str:
    """Return a sentence with each label's mean pulls over all steps, and down / up with its interval over seeds."""
    readings = []
    for label, runs in _means(frames.own_steps, ["pull_up", "pull_down"]):
        up, down = runs.mean()
        readings.append(
            f"{label} {format_pull(up)} up and {format_pull(down)} down, "
            f"ratio {format_interval(mean_ratio(runs['pull_down'], runs['pull_up']), format_pull)}"
        )
    return f"Mean over all steps: {'; '.join(readings)}."


def read_agreement(frames: Frames) -> str:
    """Return each label's mean overlap and masses over each run's last stage, and the teacher's own figures where known."""
    steps = frames.steps
    last = steps[steps["stage"] == steps.groupby(IDENTITY)["stage"].transform("max")]
    readings = []
    for label, runs in _means(last, ["overlap", "student_top_mass", "teacher_top_mass", "top_k"]):
        overlap, student, teacher, k = runs.mean()
        readings.append(
            f"{label} (K = {k:.0f}) overlap {format_percent(overlap)} %, "
            f"mass {format_percent(student)} % of the student's and {format_percent(teacher)} % of the teacher's"
        )
    taught = []
    for label, runs in _means(last, ["teacher_agreement", "teacher_entropy", "teacher_neginf_share"]):
        agreement, entropy, ruled_out = runs.mean()
        taught.append(
            f"{label} {format_percent(agreement)} %, with an entropy of at least {format_nats(entropy)} nats and a "
            f"probability below 1e-7 for {format_percent(ruled_out)} % of the sampled tokens"
        )
    opening = f"Over the last stage: {'; '.join(readings)}."
    chosen = f" The teacher's most probable token was the sampled one at: {'; '.join(taught)}." if taught else ""
    return opening + chosen


def _means(steps: pd.DataFrame, fields: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each label with its runs' means of the fields; labels without the first field are left out."""
    runs = steps.dropna(subset=fields[0]).groupby(IDENTITY, sort=False)[fields].mean()
    for label, means in runs.groupby("label", sort=False):
        yield str(label), means
