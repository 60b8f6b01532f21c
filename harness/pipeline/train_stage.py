"""One stage of training: load the student, run the adapter, save the checkpoint, and record the end in `done.json`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from torch import distributed

from harness.adapter import Adapter, StageContext, trainer_of
from harness.config.models import Model
from harness.config.run_spec import PlannedStage, RunSpec
from harness.config.training import Training
from harness.engines.engine import Engine
from harness.engines.first_process import FirstProcessEngine
from harness.engines.hf import HFEngine
from harness.errors import RunError, StoppedError, TrainingError
from harness.lm.checkpoints import (
    Loaded,
    files_digest,
    load_checkpoint,
    save_checkpoint,
    stored_parameters,
    weights_digest,
)
from harness.lm.logprobs import check_head
from harness.lm.precision import suit_attention, tf32
from harness.lm.seeding import seed_global_generators
from harness.lm.trained.trainable import as_computed
from harness.pipeline.processes.launched_ranks import launched_processes
from harness.pipeline.processes.rank_processes import several_processes
from harness.pipeline.resources import RunResources
from harness.pipeline.shared_key import shared_key
from harness.pipeline.stage_context import ContextBuilder
from harness.rundir.files import CURVE, DONE, ROLLOUTS, STEPS, file_digest, full_disk_named, sync_tree, write_sealed
from harness.rundir.process.progress import Event, silent
from harness.rundir.records.training_records import DoneFile
from harness.rundir.retention import check_space, snapshots_at_once
from harness.rundir.shared.remote_stages import RemoteStages
from harness.rundir.shared.shared_stages import SharedStages
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore
from harness.rundir.training.rollout_log import RolloutLog, keep_nothing
from harness.rundir.training.snapshots import FileSnapshots
from harness.teachers.teacher import OpenTeacher

LOGS = (STEPS, CURVE, ROLLOUTS)  # files of a stage whose digests done.json holds


class StageTrainer:
    """Trains the stages of one run; a teacher stays loaded from one stage to the next. `remote` is the run's store."""

    def __init__(self, resources: RunResources, remote: RemoteStages) -> None:
        self.resources, self.spec, self.suite, self.remote = resources, resources.spec, resources.suite, remote
        self.device, self.phase = resources.device, resources.phase
        self.contexts, self.shared = ContextBuilder(resources), SharedStages(self.spec.out)

    def train(self, folder: StageFolder, stage: PlannedStage, checkpoint: Path) -> Path:
        """Train one stage from `checkpoint`, unless it is trained already, and return the new checkpoint.

        Raises `RunError` where the stage was trained from other weights than the run has now.
        """
        before = f"stage_{stage.index - 1}" if stage.index > 1 else "start"
        self._stop_if_asked()
        done = folder.training_done
        if stage.shared and (done is None or self.suite.storage is not None):
            done = self._share(folder, stage, checkpoint, before)
        done = done or self._train(folder, stage, checkpoint, before)
        if done.before not in ("", self.resources.weights[before]):
            raise RunError(
                f"{folder.path / 'train'} was trained from weights {done.before}, and the run's {before} has "
                f"{self.resources.weights[before]} now; put the former ones back, or choose another --out"
            )
        self._stop_if_asked()
        self.resources.weights[f"stage_{stage.index}"] = done.weights
        self.resources.files[f"stage_{stage.index}"] = done.files
        if done.teacher is not None:
            self.resources.weights[stage.teacher_name] = done.teacher
        return folder.checkpoint

    def _share(self, folder: StageFolder, stage: PlannedStage, checkpoint: Path, before: str) -> DoneFile | None:
        """Train a stage for all methods, unless another run does so or has done so, here or on a machine with this store."""
        key = shared_key(self.resources, stage)
        waits = Event(self.spec.label, f"wait for stage {stage.index} {stage.name}, which another run trains")
        announce, place = cache(partial(self.resources.report, waits)), self.shared.place(key)
        manifest = RunStore(self.spec.path).manifest
        used = manifest is not None and f"stage_{stage.index}" in manifest.weights
        with self.shared.locked(key, announce):
            if folder.training_done is not None and StageFolder(place).training_done is None:
                if not self.shared.is_due(key, folder):
                    return folder.training_done
                self.shared.put(key, folder)
            with self.remote.shared_stage(
                key, place, folder, announce, self._stop_if_asked, self.resources.warn
            ) as trains:
                if trains:
                    self.shared.begin(key, folder)
                    self._train(folder, stage, checkpoint, before)
                    self.remote.refuse_lost_stage(folder)
                    self.shared.put(key, folder)
            # Another machine may have been first, where this one lost its lease or the store has none.
            if folder.training_done is None or (not used and StageFolder(place).training_done != folder.training_done):
                self.shared.take(key, folder)
            self.shared.put(key, folder)
        return folder.training_done

    def _stop_if_asked(self) -> None:
        if self.resources.stop.signal:
            raise StoppedError(f"stopped by {self.resources.stop.signal}; the same command continues")

    def follow(self, stage: PlannedStage, checkpoint: Path, weights: str, folder: Path) -> None:
        """Train one stage as one of several processes, not the first, which alone writes the run directory.

        `weights` is the digest of `checkpoint`; `folder` is empty and takes what this process leaves behind.
        """
        student = load_checkpoint(checkpoint, _as_trained(self.suite.student, stage.training), self.device)
        suit_attention(student.model, stage.training.autocast)
        engine: Engine = HFEngine(student.model, student.renderer.tokenizer, stage.training.generation_batch)
        if not self.resources.engines.backend.in_process:
            engine = FirstProcessEngine(None)
        context = self.contexts.build(stage, folder, student, weights, engine, keep_nothing)
        seed_global_generators(context.seed)
        with tf32(context.training.tf32):
            trainer_of(self.spec, stage).train_stage(
                replace(context, log=lambda _: None, warn=lambda _: None, measure=lambda _: None)
            )

    def _train(self, folder: StageFolder, stage: PlannedStage, checkpoint: Path, before: str) -> DoneFile:
        """Train a stage from its snapshot or its beginning, and write `done.json` last; `before` names the checkpoint."""
        self.remote.fetch_snapshot(folder, self.resources.warn)
        train, adapter = folder.open_training(), trainer_of(self.spec, stage)
        weights = self.resources.verify(checkpoint, before)
        uploads = self.remote.uploads(folder, self.resources.warn)
        snapshots = snapshots_at_once(self.suite)
        files = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
        size = 4 * stored_parameters(checkpoint) or files  # a stage saves float32, whatever the start's file holds
        if adapter.updates and (warning := check_space(self.spec.path, size, stage.name, snapshots)):
            self.resources.warn(warning)
        with self.phase("models"):
            student = load_checkpoint(checkpoint, _as_trained(self.suite.student, stage.training), self.device)
            check_head(student.model)
            suit_attention(student.model, stage.training.autocast)
        rollouts = RolloutLog(train, student.renderer, self.suite.keep_rollouts)
        engine = self.contexts.engine(stage, student, checkpoint)
        with self._processes(stage, checkpoint, weights):
            context = self.contexts.build(stage, train, student, weights, engine, rollouts.keep, uploads)
            done = self._run_adapter(adapter, context, student, checkpoint)
        if uploads is not None:
            uploads.drop()
        rollouts.finish()
        sync_tree(train)
        logs = {name: file_digest(train / name) for name in LOGS if (train / name).is_file()}
        done = done.model_copy(update={"logs": logs, "before": weights})
        write_sealed(train / DONE, done)
        FileSnapshots(train, None).clear()
        rollouts.clear()
        return done

    def _processes(self, stage: PlannedStage, checkpoint: Path, weights: str) -> AbstractContextManager[None]:
        """Return a block in which the suite's number of processes train a stage, where its adapter trains in several."""
        count = self.suite.parallel.processes
        if count == 1 or not trainer_of(self.spec, stage).capabilities.distributes:
            return nullcontext()
        follow = partial(_follow, self.spec, stage.index, checkpoint, weights)
        if distributed.is_torchelastic_launched():
            return launched_processes(self.device, follow)
        return several_processes(count, self.device, follow)

    def _run_adapter(self, adapter: Adapter, context: StageContext, student: Loaded, start: Path) -> DoneFile:
        """Train the student, save its checkpoint, and return what `done.json` says of it, without logs and start."""
        train, started = context.folder, time.perf_counter()
        seed_global_generators(context.seed)
        with (
            self.phase("train"),
            tf32(context.training.tf32),
            _save_last_good_on_failure(student, train.parent / "last_good"),
        ):
            self.resources.stop.cost = f"{train.parent.name} begins again, since its adapter keeps no snapshots; "
            try:
                with as_computed(student.model, context.training.precision):
                    context.measure(0)
                result = adapter.train_stage(context)
            finally:
                self.resources.stop.waited_for, self.resources.stop.cost = False, ""
        seconds = time.perf_counter() - started
        checkpoint = train / "checkpoint" if adapter.updates else start
        if adapter.updates:
            _save_whole(student, checkpoint)
        return DoneFile(
            weights=weights_digest(checkpoint),
            files=files_digest(checkpoint),
            unchanged="" if adapter.updates else _within(self.spec.path, start),
            teacher=context.teacher.identity if isinstance(context.teacher, OpenTeacher) else None,
            steps=result.steps,
            seconds=round(seconds, 3),
            prompts=len(context.examples),
        )


def _follow(spec: RunSpec, index: int, checkpoint: Path, weights: str, device: str, folder: Path) -> None:
    """Train a stage in a process of its own, on one device."""
    resources = RunResources(replace(spec, suite=spec.suite.model_copy(update={"device": device})), silent)
    StageTrainer(resources, RemoteStages(None, spec.path, spec.out)).follow(
        resources.spec.stages[index - 1], checkpoint, weights, folder
    )


def _within(run: Path, folder: Path) -> str:
    """Return a folder's path from the run's directory, so that it stays right in a copy; the whole path of one outside."""
    run, folder = run.resolve(), folder.resolve()
    return str(folder.relative_to(run) if folder.is_relative_to(run) else folder)


def _save_whole(student: Loaded, folder: Path) -> None:
    """Save a checkpoint; where the disk is full, remove the part that was written and raise `RunError`."""
    try:
        with full_disk_named(folder):
            save_checkpoint(student, folder)
    except RunError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _save_last_good_on_failure(student: Loaded, folder: Path) -> Generator[None]:
    """Save the weights from before a failed update to `folder`, and name it in the error: the stage itself begins again."""
    try:
        yield
    except TrainingError as error:
        if any(weight.untyped_storage().size() == 0 for weight in student.model.parameters()):
            raise  # other processes hold parts of the weights
        save_checkpoint(student, folder)
        raise TrainingError(f"{error}; the weights before this update are kept in {folder}") from error


def _as_trained(student: Model, training: Training) -> Model:
    """Return the student in the dtype that its optimiser updates, in which a stage also saves it: float32 master weights.

    Evaluation loads the checkpoint in the suite's dtype; rounded to bfloat16, it has the weights that training computed with.
    """
    masters = training.precision == "bfloat16_master"
    return student.model_copy(update={"dtype": "float32"}) if masters else student
