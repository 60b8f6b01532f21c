"""What keeps two evaluated cells out of one table, and the command that fixes it: the end of every refusal to compare."""

from __future__ import annotations

import shlex
from typing import Any

from harness.rundir.differences import find_differences, format_differences
from harness.rundir.reader import RunDir
from reports.data.cells import CellRef

EVALUATING = ("evaluation", "backend", "device", "data", "include")  # a configuration's part in answers
OF_STUDENT = ("dtype", "chat")
RUNNING = ("run", "sweep")


def describe_cell(cell: CellRef) -> str:
    """Say which run and stage a cell is of, with its items and key."""
    where = f"{cell.label} seed {cell.run.seed} after stage {cell.stage}"
    if cell.results is None:
        return f"{where} (not evaluated)"
    return f"{where} (n = {cell.results.n}, key {cell.results.keys.comparability})"


def what_differs(one: CellRef, other: CellRef) -> str:
    """Name the fields that differ, and what makes the cells comparable.

    Where only the grades differ, the hint grades the answers again. Where both runs are configured to evaluate alike, their
    own commands evaluate again what was removed. Otherwise the hint evaluates their checkpoints alike.
    """
    fields = [cell.results.keys.fields if cell.results else {} for cell in (one, other)]
    found = find_differences(*fields) if all(fields) else {}
    runs = list({cell.run.path: cell.run for cell in (one, other)}.values())
    if set(found) == {"grading"}:
        folders = [str(run.path) for run in runs]
        command = shlex.join(["harness", "regrade", *folders])
        return f"{format_differences(found)} differs; grade both with today's grader: {command}"
    reason = f"{format_differences(found)} differ" if found else "an earlier version did not record in what they differ"
    if _evaluating(one.run) == _evaluating(other.run):
        evaluated = " ".join(f"{shlex.quote(str(run.path))}/stage_*/eval" for run in runs)
        return f"{reason}; remove {evaluated} and evaluate them again with the same settings: {' && '.join(_commands(runs))}"
    # A control trains nothing, so its checkpoint may be the other run's start.
    checkpoints = " ".join(dict.fromkeys(_checkpoint(cell) for cell in (one, other)))
    return (
        f"{reason}; evaluate their checkpoints alike, in one matrix: harness evaluate --suite {shlex.quote(_suite(one.run))} "
        f"--checkpoints {checkpoints}"
    )


def _evaluating(run: RunDir) -> dict[str, Any]:
    """Return what decides a run's answers, apart from the weights: a part of its configuration."""
    config = run.manifest.config
    student = config.get("student") or {}
    named = (*EVALUATING, str(config.get("backend")))  # a backend's settings stand under its name
    return {name: config.get(name) for name in named} | {name: student.get(name) for name in OF_STUDENT}


def _commands(runs: list[RunDir]) -> list[str]:
    """Return the commands that made some runs, each once; of a run made from Python, one that does the same."""
    return list(dict.fromkeys(_command(run) for run in runs))


def _command(run: RunDir) -> str:
    if _arguments(run):
        return run.manifest.made.command
    options = {"adapter": run.adapter, "seed": run.seed, "order": run.order, "out": run.path.parents[3]}
    return shlex.join(
        ["harness", "run", run.suite, *(w for key, value in options.items() for w in (f"--{key}", f"{value}"))]
    )


def _suite(run: RunDir) -> str:
    """Return the suite as the run's command named it: by name, or by the path of its file."""
    return next((word for word in _arguments(run) if not word.startswith("-")), run.suite)


def _arguments(run: RunDir) -> list[str]:
    """Return what the run's command gave after `harness run` or `harness sweep`; nothing for another command."""
    try:
        words = shlex.split(run.manifest.made.command)
    except ValueError:  # earlier versions wrote an apostrophe as it is
        return []
    return words[2:] if len(words) > 2 and words[0] == "harness" and words[1] in RUNNING else []


def _checkpoint(cell: CellRef) -> str:
    """Return a cell's checkpoint for a shell; manifests of earlier versions do not say where a start that was built is."""
    if cell.stage:
        return shlex.quote(str(cell.run.stage(cell.stage).checkpoint))
    student = cell.run.manifest.config.get("student") or {}
    start = cell.run.manifest.start_checkpoint or student.get("path")
    return shlex.quote(str(start)) if start else f"~/.cache/continual-harness/models/{cell.run.start}-*"
