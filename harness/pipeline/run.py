"""The staged loop: prepare, evaluate the start, then adapt and evaluate, stage after stage.

Each stage is a function of the checkpoint before it, the run's seed and the suite, and ends on disk; so a killed run
continues from its last finished stage and ends with the numbers of an undisturbed one.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from harness.config.run_spec import RunSpec, session_settings
from harness.pipeline.evaluate_stage import StageEvaluator
from harness.pipeline.resources import RunResources
from harness.pipeline.stop_signals import stop_on_signals
from harness.pipeline.train_stage import StageTrainer
from harness.rundir.files import stderr_to
from harness.rundir.process.progress import Event, Report, silent
from harness.rundir.process.session import this_session
from harness.rundir.registered_claims import registrations_for
from harness.rundir.store import RunStore, is_finished


def run(spec: RunSpec, report: Report = silent) -> Path:
    """Do a run, or what is left of it, and return its directory; a finished run stays as it is."""
    store = RunStore(spec.path)
    with store.locked(), stderr_to(spec.path / "log.txt"):
        if is_finished(spec):
            return spec.path
        resources = RunResources(spec, report)
        trainer, evaluator = StageTrainer(resources), StageEvaluator(resources, store.stage(0))
        _prepare(resources, store)
        checkpoint = resources.start
        with (
            stop_on_signals(resources.stop),
            closing(resources.engines),
            closing(resources.teachers),
            resources.tracked() as resources.track,
        ):
            evaluator.evaluate(store.stage(0), checkpoint, "start")
            for stage in spec.stages:
                folder = store.stage(stage.index, stage.name)
                checkpoint = trainer.train(folder, stage, checkpoint)
                evaluator.evaluate(folder, checkpoint, f"after {stage.name}")
                store.record(resources.weights, **resources.used())
        store.finish(resources.weights, **resources.used())
    report(Event(spec.label, "done", 1, 1, finished=True))
    return spec.path


def _prepare(resources: RunResources, store: RunStore) -> None:
    """Refuse what could not be finished, before any work; then write the manifest."""
    manifest, session = resources.describe(), this_session()
    store.refuse_another(manifest)
    resources.check()
    facts = {
        "overlap": resources.overlap().condensed(),
        "start_checkpoint": str(resources.start),
        "weights": {"start": resources.verify(resources.start, "start")},
        "inputs": resources.inputs(),
    }
    if registered := registrations_for(resources.spec.out, resources.suite.name):
        facts["registered"] = registered
    settings = {**session_settings(manifest.config), "device": resources.device}
    store.start(manifest.model_copy(update=facts), session.model_copy(update={"settings": settings}))
