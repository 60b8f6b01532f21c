"""The staged loop: prepare, evaluate the start, then adapt and evaluate, stage after stage.

Each stage is a function of the checkpoint before it, the run's seed and the suite, and ends on disk; so a killed run
continues from its last finished stage and ends with the numbers of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.adaptation import Adaptation
from harness.assessment import Assessment
from harness.bench import Bench
from harness.checkpoints import weights_digest
from harness.config import digest
from harness.manifest import environment, now
from harness.progress import Event, Report, silent
from harness.spec import RunSpec
from harness.store import RunStore, StageFolder, cell_name, stderr_to, written


def run(spec: RunSpec, report: Report = silent) -> Path:
    """Do a run, or what is left of it, and return its directory; a finished run is left alone."""
    store = RunStore(spec.path)
    with store.locked(), stderr_to(spec.path / "log.txt"):
        if is_finished(spec):
            return spec.path
        bench = Bench(spec, report)
        adaptation = Adaptation(bench)
        assessment = Assessment(bench, store.stage(0, None))
        session = environment()
        manifest = {**bench.describe(), **session, "sessions": [], "finished": None}
        store.refuse_another(manifest)
        bench.check()
        store.start({**manifest, "overlap": bench.overlap(), "start_checkpoint": str(bench.start)})
        store.update_manifest(lambda found: {**found, "sessions": [*found["sessions"], session]})
        checkpoint = bench.start
        bench.weights["start"] = weights_digest(checkpoint)
        with closing(bench.engines), bench.tracked() as bench.track:
            assessment.assess(store.stage(0, None), checkpoint, "start")
            for index, stage in enumerate(spec.stages, start=1):
                folder = store.stage(index, stage.task)
                checkpoint = adaptation.adapt(folder, stage, index, checkpoint)
                assessment.assess(folder, checkpoint, f"after {stage.task}")
                store.update_manifest(bench.progress)
        store.update_manifest(lambda found: {**bench.progress(found), "finished": now()})
    report(Event(spec.label, "done", 1, 1, finished=True))
    return spec.path


def is_finished(spec: RunSpec) -> bool:
    """Return whether a run's directory holds all of it, made by the same configuration."""
    store = RunStore(spec.path)
    manifest = store.manifest or {}
    if not manifest.get("finished") or manifest["config_hash"] != digest(spec.config()):
        return False
    folders = [store.stage(0, None), *(store.stage(i, stage.task) for i, stage in enumerate(spec.stages, start=1))]
    trained = all(folder.training_done for folder in folders[1:])
    cells = [*spec.trained, *manifest["probes"], *_further_cells(manifest.get("profiles") or {})]
    evaluated = all(folder.evaluated(cell) for folder in folders for cell in cells)
    drifted = spec.suite.evaluation.drift is None or all(written(folder.drift) for folder in folders)
    return trained and evaluated and drifted and _noise_is_measured(folders[0], manifest.get("noise"))


def _noise_is_measured(start: StageFolder, noise: Mapping[str, Any] | None) -> bool:
    repeats = range(1, noise["repeats"] + 1) if noise else ()
    return all(written(start.noise(cell, repeat)) for repeat in repeats for cell in (noise or {})["cells"])


def _further_cells(profiles: Mapping[str, list[str]]) -> list[str]:
    """Return the cells of all profiles but the first; which tasks have any is known once tasks were loaded."""
    return [cell_name(task, name) for name in list(profiles)[1:] for task in profiles[name]]
