"""The figures of a finished run, for trackers: learning, final accuracy, forgetting and the rest, from its own cells."""

from __future__ import annotations

import math

import numpy as np

from harness.config.run_spec import RunSpec
from harness.rundir.files import read_results
from harness.rundir.store import RunStore
from harness.stats.continual import ScoreMatrix, compute_figures


def final_figures(store: RunStore, spec: RunSpec) -> dict[str, float]:
    """Return the figures that are defined for a run, under its first profile."""
    probes = store.manifest.probes if store.manifest else ()
    folders = [store.stage(0), *(store.stage(stage.index, stage.name) for stage in spec.stages)]
    tasks = [*spec.trained, *probes]
    cells = [[read_results(folder.cell(task)) for task in tasks] for folder in folders]
    scores = np.array([[math.nan if cell is None else cell.score for cell in row] for row in cells])
    stage_of = tuple(stage.index for stage in spec.stages for _ in stage.trains)
    figures = compute_figures(ScoreMatrix(scores, spec.trained, tuple(probes), stage_of))
    return {name: value for name, value in figures.items() if math.isfinite(value)}
