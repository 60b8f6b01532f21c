"""Fill a file of teacher scores before any run: for references of training items, and for responses of earlier runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from harness.adapter import trainer_of
from harness.config.run_spec import PlannedStage, RunSpec
from harness.errors import ConfigError
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.logprobs import TeacherRequest
from harness.lm.precision import autocast
from harness.lm.rollouts import Example, Rollout, make_batches
from harness.pipeline.processes.started_teachers import started_teachers
from harness.pipeline.resources import RunResources, refuse_teachers
from harness.rundir.process.progress import Counter, Report
from harness.rundir.reader import find_runs, read_parquet
from harness.teachers.cache import CachedTeacher
from harness.teachers.teacher import with_diagnostics

BATCH = 32


@dataclass(frozen=True)
class FilledStage:
    """A stage whose responses are in the cache: how many they are, and how many of them were scored now."""

    name: str
    responses: int
    scored: int


def fill_cache(spec: RunSpec, runs: Sequence[Path], report: Report) -> list[FilledStage]:
    """Score the references of a run's stages, and the kept rollouts of `runs`, that the teacher's file does not hold yet.

    Returns the stages whose training reads a teacher, in order. Raises `ConfigError` where there is none, and for a stage
    whose teacher is not of kind `cache`.
    """
    with started_teachers([spec], report) as (started,):
        return _fill(started, runs, report)


def _fill(spec: RunSpec, runs: Sequence[Path], report: Report) -> list[FilledStage]:
    resources = RunResources(spec, report)
    refuse_teachers(spec)
    if not (stages := [stage for stage in spec.stages if trainer_of(spec, stage).requirements.teacher != "none"]):
        raise ConfigError(
            f"no stage of adapters.{spec.entry} uses a teacher, so there is nothing to score; name another --adapter"
        )
    student = load_checkpoint(resources.start, spec.suite.student, resources.device)
    filled: list[FilledStage] = []
    with closing(resources.teachers):
        for stage in stages:
            teacher = None if stage.teacher is None else resources.teachers.take(stage.teacher, student)
            if not isinstance(teacher, CachedTeacher):
                raise ConfigError(
                    f"stage {stage.name} has no teacher of kind cache; expected teacher: {{kind: cache, path: FILE, of: ...}}"
                )
            asked = trainer_of(spec, stage).requirements
            request = with_diagnostics(TeacherRequest(top_k=asked.top_k, entropy=asked.entropy), teacher)
            responses = [*_references(resources, stage, student), *_rollouts(resources, stage, student, runs)]
            before, progress = teacher.misses, Counter(report, spec.label, f"score {stage.name}", len(responses))
            for batch in make_batches(responses, "sequence_mean", BATCH, resources.device):
                with autocast(resources.device, stage.training.scoring_autocast):
                    teacher.score(batch, request, stage.training.temperature)
                progress.reach(progress.done + len(batch.rollouts))
            filled.append(FilledStage(stage.name, len(responses), teacher.misses - before))
    return filled


def _examples(resources: RunResources, stage: PlannedStage, student: Loaded) -> Mapping[tuple[str, str], Example]:
    tasks = (resources.tasks[name] for name in stage.trains)
    found = [e for task in tasks for e in task.training_examples(student.renderer, stage.training.train_items)]
    return {(example.task, example.item_id): example for example in found}


def _references(resources: RunResources, stage: PlannedStage, student: Loaded) -> Iterator[Rollout]:
    """Yield the references as an adapter that trains on data reads them: cut to the longest response."""
    limit = stage.training.max_new_tokens
    for example in _examples(resources, stage, student).values():
        yield Rollout(example, example.target[:limit], "stop" if len(example.target) <= limit else "length")


def _rollouts(resources: RunResources, stage: PlannedStage, student: Loaded, runs: Sequence[Path]) -> Iterator[Rollout]:
    """Yield the rollouts that other runs kept of the same stage, where they answer one of its training items."""
    examples = _examples(resources, stage, student) if runs else {}
    for found in find_runs(runs) if runs else ():
        for file in sorted(found.path.glob(f"stage_*_{stage.name}/train/rollouts.parquet")):
            rows = read_parquet(file, ["task", "item_id", "response_ids", "finish"])
            for row in rows.itertuples(index=False):
                if (example := examples.get((str(row.task), str(row.item_id)))) is not None:
                    yield Rollout(example, [int(token) for token in row.response_ids], row.finish)  # pyright: ignore
