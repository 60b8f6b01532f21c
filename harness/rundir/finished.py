"""Whether a run directory holds all of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.config.base import digest
from harness.config.run_spec import RunSpec
from harness.rundir.files import written
from harness.rundir.schema import Noise
from harness.rundir.store import RunStore, StageFolder, cell_name


def is_finished(spec: RunSpec) -> bool:
    """Return whether a run's directory holds all of it, made by the same configuration."""
    store = RunStore(spec.path)
    manifest = store.manifest
    if manifest is None or not manifest.finished or manifest.config_hash != digest(spec.config()):
        return False
    folders = [store.stage(0), *(store.stage(i, stage.task) for i, stage in enumerate(spec.stages, start=1))]
    trained = all(folder.training_done for folder in folders[1:])
    cells = [*spec.trained, *manifest.probes, *_further_cells(manifest.profiles)]
    evaluated = all(folder.evaluated(cell) for folder in folders for cell in cells)
    drifted = spec.suite.evaluation.drift is None or all(written(folder.drift) for folder in folders)
    return trained and evaluated and drifted and _noise_is_measured(folders[0], manifest.noise)


def _noise_is_measured(start: StageFolder, noise: Noise | None) -> bool:
    repeats = range(1, noise.repeats + 1) if noise else ()
    return all(written(start.noise(cell, repeat)) for repeat in repeats for cell in (noise.cells if noise else ()))


def _further_cells(profiles: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the cells of all profiles but the first; which tasks have any is known once tasks were loaded."""
    return [cell_name(task, name) for name in list(profiles)[1:] for task in profiles[name]]
