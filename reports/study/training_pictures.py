"""The report's figures of training, for chosen configurations of a study."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pandas as pd

from reports.document.blocks import Picture
from reports.figures.curves import SMOOTHING
from reports.figures.draw_training import ENTROPY_TITLE, draw_training
from reports.study.study_plan import Config
from reports.study.study_results import Results

CAPTION = (
    f"Rolling mean of {SMOOTHING} steps within a stage; the band runs from the lowest to the highest seed. Look for a "
    "gap between the lines that lasts to the end of a stage, and for jumps where a new stage begins."
)
FIELDS = {
    "entropy": (ENTROPY_TITLE, "entropy of the student\n(nats per answer token)", 1),
    "routed_fkl": ("Tokens routed to forward KL", "tokens routed to\nforward KL (%)", 100),
    "truncated_share": ("Answers cut off at the length limit", "answers cut off at\nthe length limit (%)", 100),
}


def training_pictures(
    results: Results, name: str, labels: Mapping[Config, str], *, shades: bool = False
) -> list[Picture]:
    """Return a picture per field of the step log, a line per configuration.

    `shades` colours lines from light to dark in their order.
    """
    steps = results.steps_of(list(labels))
    keys = map(Config._make, steps[[*Config._fields]].itertuples(index=False, name=None))
    steps = steps.assign(label=pd.Series([labels[key] for key in keys], steps.index, dtype=object))
    if shades:  # one panel for all: the suites differ only in the factor's setting
        steps = steps.assign(suite="", order="")
    return [
        Picture(
            f"{name}-{field}",
            title,
            CAPTION,
            partial(draw_training, steps, field, unit, title, scale, shades=shades),
            optional=True,
        )
        for field, (title, unit, scale) in FIELDS.items()
    ]
