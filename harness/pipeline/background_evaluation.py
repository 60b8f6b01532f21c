"""Evaluate a finished stage in another process while its run trains the next one.

The run names the finished stage, and the other process evaluates what the stage's folder lacks. Before the run evaluates the
next stage, it evaluates what is still missing. A lock keeps the two apart, so no cell is evaluated twice, and nothing is lost
when the other process ends early.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from harness.config.run_spec import PlannedStage, RunSpec
from harness.errors import RunError
from harness.pipeline.evaluate_stage import StageEvaluator
from harness.pipeline.resources import RunResources
from harness.rundir.locks import waiting_lock
from harness.rundir.process.progress import Report
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore

Begin = Callable[[RunSpec, int], bool]  # starts the evaluation of a stage elsewhere; False where nothing is free for it


class BackgroundEvaluations:
    """Evaluates the stages of a run when they are trained, or starts that with `begin` while the next stage trains."""

    def __init__(self, evaluator: StageEvaluator, begin: Begin | None) -> None:
        self.evaluator, self.begin = evaluator, begin
        self._pending: tuple[StageFolder, Path, str] | None = None

    def after(self, folder: StageFolder, checkpoint: Path, stage: PlannedStage) -> bool:
        """Evaluate a trained stage.

        Returns False where another process was asked to; the last stage is always evaluated here.
        """
        spec, when = self.evaluator.spec, f"after {stage.name}"
        if self.begin is not None and stage.index < len(spec.stages) and self.begin(spec, stage.index):
            self._pending = folder, checkpoint, when
            return False
        self.evaluator.evaluate(folder, checkpoint, when)
        return True

    def finish(self) -> None:
        """Wait for an evaluation that was started elsewhere, and evaluate the cells that it left out."""
        if self._pending is not None:
            with _lock_of(self._pending[0]):
                self.evaluator.evaluate(*self._pending)
            self._pending = None


def evaluate_in_background(spec: RunSpec, index: int, report: Report) -> None:
    """Evaluate what stage `index` of a run lacks, in a process other than the run's.

    Raises `RunError` for a stage that is not trained yet.
    """
    store = RunStore(spec.path)
    resources = RunResources(spec, report)
    stage = resources.spec.stages[index - 1]
    folder = store.stage(index, stage.name)
    if (done := folder.training_done) is None:
        raise RunError(f"{folder.path} is not trained yet, so it cannot be evaluated; continue its run first")
    resources.weights |= {"start": resources.verify(resources.start, "start"), f"stage_{index}": done.weights}
    resources.files[f"stage_{index}"] = done.files
    with _lock_of(folder), closing(resources.engines):
        StageEvaluator(resources, store.stage(0)).evaluate(folder, folder.checkpoint, f"after {stage.name}")


def _lock_of(folder: StageFolder) -> AbstractContextManager[None]:
    return waiting_lock(folder.path.with_name(f".{folder.path.name}.lock"))
