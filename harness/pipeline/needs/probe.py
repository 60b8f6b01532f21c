"""Measure what a whole run will take, by a short real run.

The probe is the run itself with a few steps per stage and one batch of test items per task, in a process and a folder of its
own. The remaining steps and test items are added at the time that one step or item of the probe took.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Stage, Suite
from harness.errors import HarnessError
from harness.pipeline.run import run
from harness.pipeline.sweeps.workers import worker_pool
from harness.rundir.files import read_results
from harness.rundir.reader import RunDir
from harness.rundir.store import read_manifest

STEPS = 4  # of each stage; the first one is slower and not counted


@dataclass(frozen=True)
class Probe:
    """What a whole run will take, estimated from a short one.

    `train`, `evaluate` and `total` are seconds; `peak_train` and `peak_evaluate` bytes of memory, of `memory_of`: `process`
    or `gpu`; `sample_bytes` the disk space of the answers; `took` the seconds of the probe; `stages` each stage's seconds of
    training.
    """

    train: float
    evaluate: float
    total: float
    peak_train: float
    peak_evaluate: float
    memory_of: str
    sample_bytes: float
    took: float
    stages: Mapping[str, float]


def probe_run(spec: RunSpec, items: dict[str, int], minutes: float) -> Probe | str:
    """Return what a run will take, or the reason why that is not known.

    `items` is the number of test items of each evaluated cell; a probe that takes longer than `minutes` is killed.
    """
    with tempfile.TemporaryDirectory(prefix="harness-probe-", ignore_cleanup_errors=True) as folder:
        short = replace(spec, suite=_shortened(spec), out=Path(folder), items=None)
        pool = worker_pool(1, multiprocessing.get_context("spawn"))
        try:
            pool.submit(run, short).result(timeout=60 * minutes)
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
        return _extrapolate(short.path, spec, items)


def _shortened(spec: RunSpec) -> Suite:
    """Return the suite with a few steps a stage and one batch of test items."""
    suite, evaluation = spec.suite, spec.suite.evaluation
    limit = min(evaluation.limit or evaluation.batch_size, evaluation.batch_size)
    changes = {"limit": limit, "every": None, "noise_floor": 0}
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
        }
    )


def _without_budget(entry: AdapterEntry) -> AdapterEntry:
    """Return an entry without steps and epochs of its own, so that the stage's apply."""
    own = {key: value for key, value in entry.training.items() if key not in ("steps", "epochs")}
    return entry.model_copy(update={"training": own})


def _extrapolate(path: Path, spec: RunSpec, items: dict[str, int]) -> Probe:
    manifest = read_manifest(path)
    assert manifest is not None
    found = RunDir(path, manifest)
    seconds, more_train, more_evaluate, sample_bytes = found.seconds, 0.0, 0.0, 0.0
    stages: dict[str, float] = {}
    for stage in spec.stages:
        done = found.stage(stage.index).training_done
        steps = [line.seconds["step"] or 0.0 for line in found.step_lines(stage.index) if line.seconds]
        if steps and done is not None:
            more = (stage.training.steps - done.steps) * median(steps[1:] or steps)
            more_train, stages[stage.name] = more_train + more, done.seconds + more
    for index in range(len(spec.stages) + 1):
        for name, count in items.items():
            cell = found.stage(index).cell(name)
            if (results := read_results(cell)) is not None:
                times = count / results.n
                more_evaluate += (times - 1) * results.seconds
                sample_bytes += times * (cell / "samples.parquet").stat().st_size
    peak = found.peak_memory
    return Probe(
        train=seconds["train"] + more_train,
        evaluate=seconds["evaluate"] + more_evaluate,
        total=seconds["total"] + more_train + more_evaluate,
        peak_train=peak["train"],
        peak_evaluate=peak["evaluate"],
        memory_of=found.memory_of,
        sample_bytes=sample_bytes,
        took=seconds["total"],
        stages=stages,
    )
