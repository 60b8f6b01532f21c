"""The staged loop: prepare, evaluate the start, then adapt and evaluate, stage after stage.

Each stage is a function of the checkpoint before it, the run's seed and the suite, and its result is on disk. So a killed run
continues from its last finished stage and ends with the numbers of an uninterrupted one.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from harness.config.run_spec import RunSpec, session_settings
from harness.pipeline.background_evaluation import BackgroundEvaluations, Begin
from harness.pipeline.evaluate_stage import StageEvaluator
from harness.pipeline.finished_runs import is_finished_run
from harness.pipeline.processes.started_teachers import started_teachers
from harness.pipeline.processes.stop_signals import stop_on_signals
from harness.pipeline.resources import RunResources
from harness.pipeline.score_teacher import score_teacher, warn_where_worse
from harness.pipeline.train_stage import StageTrainer
from harness.rundir.files import read_results, stderr_to
from harness.rundir.process.progress import Event, Report, silent
from harness.rundir.process.session import this_session
from harness.rundir.registered_claims import registrations_for
from harness.rundir.retention import drop_checkpoints, note_start
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.store import RunStore
from harness.stats.continual import compute_figures
from harness.stats.score_matrix import ScoreMatrix


def run(spec: RunSpec, report: Report = silent, begin: Begin | None = None) -> Path:
    """Do a run, or the rest of an interrupted one, and return its directory; a finished run stays as it is.

    `begin` starts the evaluation of a finished stage in another process, while the next stage trains; see
    `harness.pipeline.background_evaluation`. Raises a `HarnessError` for whatever the run cannot continue from.
    """
    store, remote = RunStore(spec.path), RemoteStages.of(spec)
    with store.locked(), stderr_to(spec.path / "log.txt"), ExitStack() as stack:
        remote.fetch()
        folders = [store.stage(0), *(store.stage(stage.index, stage.name) for stage in spec.stages)]
        if is_finished_run(spec):
            if remote.lacks_end():
                remote.put(store.teacher, *folders)
            return spec.path
        stack.enter_context(remote.held(lambda sentence: report(Event(spec.label, sentence, warning=True))))
        if is_finished_run(spec):  # by another machine, until a moment ago
            return spec.path
        (spec,) = stack.enter_context(started_teachers([spec], report))
        resources = RunResources(spec, report)
        spec = resources.spec
        trainer, evaluator = StageTrainer(resources, remote), StageEvaluator(resources, store.stage(0))
        evaluations = BackgroundEvaluations(evaluator, begin)
        _prepare(resources, store)
        checkpoint = resources.start
        with (
            stop_on_signals(resources.stop),
            closing(resources.engines),
            closing(resources.teachers),
            resources.tracked() as resources.track,
        ):
            score_teacher(resources, store.teacher)
            evaluator.evaluate(store.stage(0), checkpoint, "start")
            warn_where_worse(resources, store.teacher, store.stage(0))
            remote.put(store.teacher, store.stage(0))
            for before, folder, stage in zip(folders, folders[1:], spec.stages, strict=False):
                checkpoint = trainer.train(folder, stage, checkpoint)
                evaluations.finish()
                drop_checkpoints(folders[1 : stage.index], spec.stages, spec.suite.checkpoints, checkpoint)
                store.record(resources.weights, **resources.used())
                remote.put(folder, before)  # in this order: the store loses no checkpoint before it has the next
                here = evaluations.after(folder, checkpoint, stage)
                store.record(resources.weights, **resources.used())
                if here:
                    remote.put(folder)
            resources.track({"final": _final_figures(store, spec)}, spec.steps_before(len(spec.stages) + 1))
        store.finish(resources.weights, **resources.used())
        if spec.suite.checkpoints.keep != "last":
            drop_checkpoints(folders[-1:], spec.stages[-1:], spec.suite.checkpoints)
        remote.put(folders[-1])
    report(Event(spec.label, "done", 1, 1, finished=True))
    return spec.path


def _prepare(resources: RunResources, store: RunStore) -> None:
    """Refuse a run that could not end, before any work; then write its manifest."""
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
    note_start(resources.start, store.path)
    store.start(manifest.model_copy(update=facts), session.model_copy(update={"settings": settings}))


def _final_figures(store: RunStore, spec: RunSpec) -> dict[str, float]:
    """Return the figures of the run's score matrix that are finite, under its first profile; trackers show them."""
    manifest = store.manifest
    probes, before = (manifest.probes, manifest.trained_before_start) if manifest else ((), ())
    folders = [store.stage(0), *(store.stage(stage.index, stage.name) for stage in spec.stages)]
    cells = [[read_results(folder.cell(task)) for task in (*spec.trained, *probes)] for folder in folders]
    scores = np.array([[math.nan if cell is None else cell.score for cell in row] for row in cells])
    stage_of = tuple(stage.index for stage in spec.stages for _ in stage.trains)
    fixed = tuple(task for stage in spec.stages if stage.own_adapter for task in stage.trains)
    figures = compute_figures(ScoreMatrix(scores, spec.trained, probes, stage_of, fixed=fixed, before=before))
    return {name: value for name, value in figures.items() if math.isfinite(value)}
