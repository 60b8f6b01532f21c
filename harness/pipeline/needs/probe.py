"""Measure what a whole run will take, by a short real run.

The probe is the run itself with a few steps per stage and one batch of test items per task, in a process and a folder of its
own. `harness.pipeline.needs.extrapolation` computes the whole run from it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.models import Model, Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Stage, Suite
from harness.errors import HarnessError
from harness.evaluation.groups import EvaluationPlan
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.build.model_source import checkpoint_of
from harness.pipeline.build.scratch import folder_of
from harness.pipeline.build.scratch_tokenizer import training_texts
from harness.pipeline.needs.extrapolation import (
    CellPlan,
    MeasuredCell,
    MeasuredRun,
    MeasuredStage,
    RunPlan,
    StagePlan,
    Times,
    extrapolate,
    points_of,
)
from harness.pipeline.processes.devices import limit_threads, working_device
from harness.pipeline.resources import sampled_cells
from harness.pipeline.run import run
from harness.pipeline.sweeps.sweep import models_of
from harness.pipeline.sweeps.workers import worker_pool
from harness.rundir.files import SAMPLES, read_results
from harness.rundir.reader import RunDir, parquet_bytes
from harness.rundir.stage_folder import StageFolder, teacher_folder
from harness.rundir.store import read_manifest

STEPS = 4  # of each stage; the first one is slower and not counted


@dataclass(frozen=True)
class Probe:
    """What a whole run will take, estimated from a short one.

    `peak_train` and `peak_evaluate` are bytes of memory, of `memory_of`: `process` or `gpu`; `took` the seconds of the probe.
    """

    times: Times
    peak_train: float
    peak_evaluate: float
    memory_of: str
    took: float


def build_models(spec: RunSpec, say: Callable[[str], None]) -> None:
    """Build the models that all runs share and that are not built yet; a run does the same, however long it takes.

    A process of its own builds each, so that its memory is not the probe's. `say` gets a sentence for each.
    """
    library, device = TaskLibrary(spec.suite.include, spec.suite.data), working_device(spec.suite.device)
    for _, model, seed in models_of([spec]).values():
        assert isinstance(model, Scratch)
        if not folder_of(model, seed, training_texts(model, library), device).is_dir():
            say(f"building the model {model.strength}, seed {seed}, which runs share and keep; this takes minutes ...")
            with worker_pool(1, multiprocessing.get_context("spawn")) as pool:
                pool.submit(_build, spec, model, seed, device).result()


def probe_run(spec: RunSpec, evaluated: EvaluationPlan, minutes: float) -> Probe | str:
    """Return what a run will take, or the reason why that is not known; a probe that takes longer than `minutes` is killed.

    Models that are not built yet are built within these minutes.
    """
    with tempfile.TemporaryDirectory(prefix="harness-probe-", ignore_cleanup_errors=True) as folder:
        short = shorten(spec, Path(folder))
        pool = worker_pool(1, multiprocessing.get_context("spawn"))
        try:
            pool.submit(_run, short).result(timeout=60 * minutes)
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            return f"the probe did not end within {minutes:g} minutes; allow more with --probe-minutes"
        except BrokenProcessPool:
            return "the probe's process was killed, most often because memory ran out"
        except HarnessError as error:
            return f"the probe failed: {error}"
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return read_probe(short.path, spec, evaluated)


def _build(spec: RunSpec, model: Model, seed: int, device: str) -> None:
    limit_threads(spec.suite.threads)
    checkpoint_of(model, seed, TaskLibrary(spec.suite.include, spec.suite.data), device=device)


def _run(spec: RunSpec) -> None:
    limit_threads(spec.suite.threads)
    run(spec)


def shorten(spec: RunSpec, out: Path) -> RunSpec:
    """Return the short run of a run, in the folder `out`."""
    return replace(spec, suite=_shortened(spec), out=out, items=None)


def read_probe(path: Path, spec: RunSpec, evaluated: EvaluationPlan) -> Probe:
    """Return what `spec` will take, from its finished short run in `path`."""
    manifest = read_manifest(path)
    assert manifest is not None
    found = RunDir(path, manifest)
    peak = found.peak_memory
    return Probe(
        times=extrapolate(_measured(found, spec, evaluated), plan_of(spec, evaluated)),
        peak_train=peak["train"],
        peak_evaluate=peak["evaluate"],
        memory_of=found.memory_of,
        took=found.seconds["total"],
    )


def plan_of(spec: RunSpec, evaluated: EvaluationPlan) -> RunPlan:
    """Return the numbers of a run that decide how long it takes; the budgets of `spec` must be in steps."""
    settings, sampled = spec.suite.evaluation, sampled_cells(evaluated.cells)
    steps = {stage.name: (stage.training.steps, stage.shared) for stage in spec.stages}
    return RunPlan(
        stages={
            name: StagePlan(count, points_of(count, settings.every), shared) for name, (count, shared) in steps.items()
        },
        cells={
            name: CellPlan(len(task.test_docs(settings.limit)), name in sampled)
            for name, task in evaluated.cells.items()
        },
        repeats=settings.noise_floor,
    )


def _shortened(spec: RunSpec) -> Suite:
    """Return the suite with a few steps a stage and one batch of test items."""
    suite, evaluation = spec.suite, spec.suite.evaluation
    # The distance from the start and a point of the learning curve are measured whole.
    curve = evaluation.curve_items if evaluation.every is not None else 0
    limit = max(evaluation.batch_size, evaluation.drift.items if evaluation.drift else 0, curve)
    every = evaluation.every and min(evaluation.every, STEPS)
    changes = {"limit": min(evaluation.limit or limit, limit), "every": every, "noise_floor": 0}
    training = {stage.name: stage.training for stage in spec.stages}

    def short(stage: Stage) -> Stage:
        budget = training.get(stage.task, stage.training)
        few = budget.model_copy(update={"steps": min(STEPS, budget.steps), "epochs": None})
        return stage.model_copy(update={"training": few, "adapter": stage.adapter and _without_budget(stage.adapter)})

    entries = {name: _without_budget(entry) for name, entry in suite.adapters.items()}
    return suite.model_copy(
        update={
            "evaluation": evaluation.model_copy(update=changes),
            "stages": tuple(map(short, suite.stages)),
            "adapters": entries,
            "trackers": (),
            "snapshot_minutes": None,
            "storage": None,
        }
    )


def _without_budget(entry: AdapterEntry) -> AdapterEntry:
    """Return an entry without steps and epochs of its own, so that the stage's apply."""
    own = {key: value for key, value in entry.training.items() if key not in ("steps", "epochs")}
    return entry.model_copy(update={"training": own})


def _measured(found: RunDir, spec: RunSpec, evaluated: EvaluationPlan) -> MeasuredRun:
    stages: dict[str, MeasuredStage] = {}
    every = spec.suite.evaluation.every
    for stage in spec.stages:
        done = found.stage(stage.index).training_done
        steps = [line.seconds["step"] or 0.0 for line in found.step_lines(stage.index) if line.seconds]
        if steps and done is not None:
            points = points_of(done.steps, every and min(every, STEPS))
            stages[stage.name] = MeasuredStage(done.seconds, steps, points)
    known = set[str]()
    folders = [found.stage(index) for index in range(len(spec.stages) + 1)]
    return MeasuredRun(
        train=found.seconds["train"],
        evaluate=found.seconds["evaluate"],
        total=found.seconds["total"],
        stages=stages,
        cells=[dict(_answered(folder, evaluated.cells, known)) for folder in folders],
        teacher=dict(_answered(teacher_folder(found.path), evaluated.tasks, known)),
    )


def _answered(folder: StageFolder, names: Mapping[str, Task], known: set[str]) -> Iterator[tuple[str, MeasuredCell]]:
    """Yield a folder's cells; one whose answers are in `known` took no time, as the run used them again."""
    for name in names:
        results = read_results(folder.cell(name))
        if results is not None and results.keys.generation not in known:
            known.add(results.keys.generation)
            whole, rows = parquet_bytes(folder.cell(name) / SAMPLES)
            yield name, MeasuredCell(results.n, results.seconds, rows, whole - rows)
