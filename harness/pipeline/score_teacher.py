"""The teacher's own scores on the suite's tasks, which show how much there is to learn; a warning where that is nothing.

The teacher answers the test items once, under the first profile, and all runs of an output folder share the answers. A run
does not depend on these scores, so a teacher that cannot be scored causes a warning and the run continues.
"""

from __future__ import annotations

import torch

from harness.adapter import uses_teacher
from harness.config.models import Pretrained, Scratch
from harness.errors import HarnessError
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate_checkpoint
from harness.evaluation.groups import group_cell
from harness.lm.checkpoints import weights_digest
from harness.pipeline.resources import RunResources
from harness.rundir.files import read_results, write_cell
from harness.rundir.process.progress import Counter
from harness.rundir.records.cell_records import WORSE_TEACHER
from harness.rundir.stage_folder import StageFolder


def score_teacher(resources: RunResources, folder: StageFolder) -> None:
    """Evaluate the suite's teacher and write its cells to `folder`, unless they are there.

    Only a teacher that is a model of this process is scored, and only where a stage uses it and `evaluation.teacher` is on.
    """
    teacher = resources.suite.teacher
    if not isinstance(teacher, Pretrained | Scratch) or not resources.suite.evaluation.teacher:
        return
    names = [*resources.tasks, *(name for name, group in resources.evaluated.groups.items() if not group.profile)]
    used = any(uses_teacher(resources.spec, stage) for stage in resources.spec.stages)
    if not used or all(map(folder.evaluated, names)):
        return
    try:
        with resources.phase("evaluate"):
            checkpoint = resources.checkpoint_of(teacher)
            served = ServedCheckpoint(
                checkpoint, weights_digest(checkpoint), teacher.chat, teacher.dtype, resources.device
            )
            _write_cells(resources, folder, served)
    except (HarnessError, torch.OutOfMemoryError) as error:
        resources.warn(f"the teacher is not scored ({error}); the run goes on without its scores")


def warn_where_worse(resources: RunResources, teacher: StageFolder, start: StageFolder) -> None:
    """Warn of the trained tasks on which the teacher scores less than the student does before any stage."""
    worse: list[str] = []
    for task in resources.spec.trained:
        its, own = (read_results(folder.cell(task)) for folder in (teacher, start))
        if its is not None and own is not None and its.score <= own.score - WORSE_TEACHER:
            worse.append(f"{task} ({100 * its.score:.1f} %, the student {100 * own.score:.1f} %)")
    if worse:
        resources.warn(f"the teacher scores less than the student before any stage on {', '.join(worse)}")


def _write_cells(resources: RunResources, folder: StageFolder, served: ServedCheckpoint) -> None:
    tasks = list(resources.tasks.values())
    progress = Counter(resources.report, resources.spec.label, "evaluate the teacher", len(tasks))
    settings, shared = resources.suite.evaluation, SharedCells(resources.spec.out)
    cells = evaluate_checkpoint(served, tasks, resources.library, settings, shared, progress.next)
    by_task = {task.name: cells[task.cell] for task in tasks}
    groups = {name: group for name, group in resources.evaluated.groups.items() if not group.profile}
    made: dict[str, CellResult] = {**by_task, **{name: group_cell(group, by_task) for name, group in groups.items()}}
    for name, cell in made.items():
        write_cell(folder.cell(name), cell.summary, cell.samples)
