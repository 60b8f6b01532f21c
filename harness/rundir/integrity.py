"""Find what is wrong with a run's files (missing, damaged, changed, of another run), and what can be made again.

Every summary has a checksum of itself and the digest of its answers, `done.json` the digests of a stage's logs and of its
checkpoint, and the manifest the digests of all weights. So each file is checked against another one, up to the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.config.teacher_identity import weights_part
from harness.errors import HarnessError, RunError
from harness.rundir.files import CURVE, DONE, RESULTS, SAMPLES, STEPS, check_samples, file_digest, read_results
from harness.rundir.reader import RunDir, read_parquet
from harness.rundir.records.cell_records import CellRecord, CellSummary, DriftSummary
from harness.rundir.records.training_records import DoneFile
from harness.rundir.stage_folder import StageFolder, cell_name, teacher_folder

DAMAGED = "damaged"  # folder of a run to which a repair moves files
# Returns the digests of a checkpoint's folder by name: first of its weights, then of its other files.
Digests = Callable[[Path], Mapping[str, str]]
Remedy = Literal["evaluate", "train", "restore"]
_READ = (STEPS, CURVE)  # logs of a stage that reports read
REMEDIES: dict[Remedy, str] = {
    "evaluate": "the run's command evaluates it again",
    "train": "the run's command trains the stage again, and refuses weights that differ from the recorded ones",
    "restore": "the run cannot make it again; restore it from a copy",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the file or folder, a sentence, the remedy, and whether it is only missing."""

    place: Path
    sentence: str
    remedy: Remedy
    missing: bool = False


def find_faults(run: RunDir, digests: Digests | None = None) -> Iterator[Fault]:
    """Yield what is wrong with a run's files, stage by stage; what an unfinished run has not written yet is not missing.

    `digests` reads a checkpoint, for example `harness.lm.checkpoints.checkpoint_digests`. Without it, checkpoints and rollouts
    are not checked: reports do not read them, and reading weights loads torch.
    """
    for index in range(len(run.stages) + 1):
        folder = run.stage(index)
        weights = run.manifest.weights.get(f"stage_{index}" if index else "start", "")
        if index:
            yield from _training(run, index, folder, weights, digests)
        removed = _is_removed(folder)
        for place, kind in _cells(run, index, folder):
            for fault in _cell(run, index, place, kind, weights):
                yield replace(fault, remedy="restore") if removed else fault
    for place in _present(teacher_folder(run.path), "eval/*", "regraded/*/*"):
        yield from _cell(run, 0, place, CellSummary, weights_part(run.manifest.weights.get("teacher", "")))


def refuse_changed(runs: Iterable[RunDir]) -> list[Fault]:
    """Return the files of runs that reports read and that are missing; raises `RunError` for the first that was changed."""
    missing: list[Fault] = []
    for run in runs:
        faults = list(find_faults(run))
        if changed := [fault for fault in faults if not fault.missing]:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise RunError(f"{changed[0].sentence}{more}; see: harness runs verify {run.path}")
        missing += faults
    return missing


def move_away(run: Path, faults: Iterable[Fault]) -> list[Path]:
    """Move files that the run's command can make again into the run's folder `damaged`; return their new paths."""
    moved: list[Path] = []
    for place in dict.fromkeys(fault.place for fault in faults if fault.remedy != "restore" and fault.place.exists()):
        target = run / DAMAGED / place.relative_to(run)
        number = 1
        while target.exists():
            number, target = number + 1, run / DAMAGED / str(number) / place.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place, target)
        moved.append(target)
    return moved


def _training(run: RunDir, index: int, folder: StageFolder, weights: str, digests: Digests | None) -> Iterator[Fault]:
    train, finished = folder.path / "train", run.manifest.finished is not None
    try:
        done = folder.training_done
    except (RunError, OSError) as error:
        yield Fault(train, str(error), "train")
        return
    if done is None:
        if finished:
            yield Fault(train, f"{train / DONE} is missing from a finished run", "train", missing=True)
        return
    if weights and done.weights not in ("", weights):
        yield Fault(train, _other_weights(train / DONE, done.weights, weights), "train")
    begun = run.manifest.weights.get(f"stage_{index - 1}" if index > 1 else "start", "")
    if begun and done.before and done.before != begun:
        yield Fault(train, f"{train / DONE} began with the weights {done.before}, expected {begun}", "train")
    for name, digest in done.logs.items() if digests else [log for log in done.logs.items() if log[0] in _READ]:
        if not (train / name).is_file():
            yield Fault(train, f"{train / name} is missing from a trained stage", "train", missing=True)
        elif (found := file_digest(train / name)) != digest:
            yield Fault(train, f"{train / name} was changed: its digest is {found}, expected {digest}", "train")
    if digests is not None:
        yield from _checkpoint(folder, done, digests)


def _is_removed(folder: StageFolder) -> bool:
    """Return whether a stage's checkpoint was removed, as the suite's `checkpoints` says; its cells need it."""
    try:
        done = folder.training_done
    except (RunError, OSError):
        return False
    return done is not None and not done.kept and not folder.checkpoint.is_dir()


def _checkpoint(folder: StageFolder, done: DoneFile, digests: Digests) -> Iterator[Fault]:
    checkpoint, train = folder.checkpoint, folder.path / "train"
    if done.unchanged and done.before not in ("", done.weights):
        yield Fault(train, f"{train / DONE} names weights {done.weights}, expected {done.before}, unchanged", "train")
        return
    if not checkpoint.is_dir():
        if done.kept and not done.unchanged:  # one that is not kept was removed, as the suite's `checkpoints` says
            yield Fault(train, f"{checkpoint} is missing from a trained stage", "train", missing=True)
        return
    remedy: Remedy = "restore" if done.unchanged else "train"  # the weights of another stage or of the start
    try:
        found = digests(checkpoint)
    except (HarnessError, OSError) as error:
        yield Fault(train, str(error), remedy)
        return
    for (what, present), expected in zip(found.items(), (done.weights, done.files), strict=True):
        if expected and present != expected:
            yield Fault(train, f"{checkpoint}: its {what} changed: digest {present}, expected {expected}", remedy)


def _cells(run: RunDir, index: int, folder: StageFolder) -> Iterator[tuple[Path, type[CellRecord]]]:
    """Yield the folder of each cell that a stage has, or that it must have in a finished run, with its summary's class."""
    expected: list[Path] = []
    if run.manifest.finished:
        profiles = ("", *run.further_profiles)
        expected = [folder.cell(cell_name(task, name)) for name in profiles for task in run.tasks_under(name)]
        if not index and (noise := run.manifest.noise):
            repeats = range(1, noise.repeats + 1)
            expected += [folder.noise(cell, repeat) for repeat in repeats for cell in noise.cells]
    present = _present(folder, "eval/*", "noise/*/*", "regraded/*/*")
    for place in dict.fromkeys([*expected, *present]):
        yield place, CellSummary
    evaluation: dict[str, Any] = run.manifest.config.get("evaluation") or {}
    if folder.drift.exists() or (run.manifest.finished and evaluation.get("drift")):
        yield folder.drift, DriftSummary


def _present(folder: StageFolder, *patterns: str) -> list[Path]:
    """Return the complete folders of cells that a stage has, by pattern."""
    found = [path for pattern in patterns for path in sorted(folder.path.glob(pattern))]
    return [path for path in found if not path.name.startswith(".")]


def _cell(run: RunDir, index: int, place: Path, kind: type[CellRecord], weights: str) -> Iterator[Fault]:
    try:
        summary = read_results(place, kind)
    except (RunError, OSError) as error:
        yield Fault(place, f"{error}", "evaluate")
        return
    if summary is None:
        yield Fault(place, f"{place / RESULTS} is missing", "evaluate", missing=True)
        return
    if not (place / SAMPLES).is_file():
        if summary.samples_digest:
            yield Fault(place, f"{place / SAMPLES} is missing", "evaluate", missing=True)
        return
    try:
        check_samples(place, summary)
        read_parquet(place / SAMPLES, [])
    except RunError as error:
        yield Fault(place, f"{error}", "evaluate")
    yield from _misplaced(run, index, place, summary, weights)


def _misplaced(run: RunDir, index: int, place: Path, summary: CellRecord, weights: str) -> Iterator[Fault]:
    """Yield the ways in which a cell belongs to another stage, task or checkpoint than its folder says."""
    stage = getattr(summary, "stage", None)
    if stage is not None and stage != index:
        yield Fault(place, f"{place / RESULTS} belongs to stage {stage}, expected {index}", "evaluate")
    found = getattr(summary, "weights", "")
    if weights and found and summary.samples_digest and found != weights:
        yield Fault(place, _other_weights(place / RESULTS, found, weights), "evaluate")
    if isinstance(summary, CellSummary) and place.parent.name == "eval":
        first = run.manifest.profile_names[0]
        named = cell_name(summary.task, "" if summary.profile in ("", first) else summary.profile)
        if named != place.name:
            yield Fault(place, f"{place / RESULTS} is the cell {named}, expected {place.name}", "evaluate")


def _other_weights(file: Path, found: str, expected: str) -> str:
    return f"{file} names the weights {found}, but the run's manifest names {expected} for this stage"
