"""The staged loop: prepare, evaluate the start, then adapt and evaluate, stage after stage.

Each stage is a function of the checkpoint before it, the run's seed and the suite, and ends on disk; so a killed run
continues from its last finished stage and ends with the numbers of an undisturbed one.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from harness.config.run_spec import RunSpec
from harness.lm.checkpoints import weights_digest
from harness.pipeline.evaluate_stage import StageEvaluator
from harness.pipeline.resources import RunResources
from harness.pipeline.train_stage import Adaptation
from harness.rundir.files import stderr_to
from harness.rundir.finished import is_finished
from harness.rundir.manifest import environment, now
from harness.rundir.progress import Event, Report, silent
from harness.rundir.store import RunStore


def run(spec: RunSpec, report: Report = silent) -> Path:
    """Do a run, or what is left of it, and return its directory; a finished run is left alone."""
    store = RunStore(spec.path)
    with store.locked(), stderr_to(spec.path / "log.txt"):
        if is_finished(spec):
            return spec.path
        resources = RunResources(spec, report)
        adaptation = Adaptation(resources)
        assessment = StageEvaluator(resources, store.stage(0))
        session = environment()
        manifest = resources.describe()
        store.refuse_another(manifest)
        resources.check()
        facts = {"overlap": resources.overlap(), "start_checkpoint": str(resources.start)}
        store.start(manifest.model_copy(update=facts))
        store.update_manifest(lambda found: found.with_session(session))
        checkpoint = resources.start
        resources.weights["start"] = weights_digest(checkpoint)
        with closing(resources.engines), closing(resources.teachers), resources.tracked() as resources.track:
            assessment.assess(store.stage(0), checkpoint, "start")
            for index, stage in enumerate(spec.stages, start=1):
                folder = store.stage(index, stage.task)
                checkpoint = adaptation.adapt(folder, stage, index, checkpoint)
                assessment.assess(folder, checkpoint, f"after {stage.task}")
                store.update_manifest(resources.progress)
        store.update_manifest(lambda found: resources.progress(found).model_copy(update={"finished": now()}))
    report(Event(spec.label, "done", 1, 1, finished=True))
    return spec.path
