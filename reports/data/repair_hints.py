"""Explain why two cells are not comparable, and name a command that fixes it."""

from __future__ import annotations

import shlex
from typing import Any

from harness.rundir.differences import find_differences, format_differences
from harness.rundir.reader import RunDir
from reports.data.cells import CellRef

EVALUATING = ("evaluation", "backend", "device", "data", "include")  # the parts of a configuration that decide answers
OF_STUDENT = ("dtype", "chat")
RUNNING = ("run", "sweep")


def describe_cell(cell: CellRef) -> str:
    """Say which run and stage a cell is of, with its items and key."""
    where = f"{cell.label} seed {cell.run.seed} after stage {cell.stage}"
    if cell.results is None:
        return f"{where} (not evaluated)"
    return f"{where} (n = {cell.results.n}, key {cell.results.keys.comparability})"


def what_differs(one: CellRef, other: CellRef) -> str:
    """Name the fields that differ between two cells, and a command that makes them comparable.

    Where only the grading differs, the command grades the answers again. Where both runs are configured to evaluate alike,
    their own commands evaluate again what the user removes. Otherwise the command evaluates both checkpoints in one matrix.
    """
    fields = [cell.results.keys.fields if cell.results else {} for cell in (one, other)]
    found = find_differences(*fields) if all(fields) else {}
    runs = list({cell.run.path: cell.run for cell in (one, other)}.values())
    if set(found) == {"grading"}:
        folders = [str(run.path) for run in runs]
        command = shlex.join(["harness", "regrade", *folders])
        return f"{format_differences(found)} differs; grade both with today's grader: {command}"
    reason = f"{format_differences(found)} differ" if found else "an earlier version did not record what differs"
    if _evaluating(one.run) == _evaluating(other.run):
        evaluated = " ".join(f"{shlex.quote(str(run.path))}/stage_*/eval" for run in runs)
        commands = " && ".join(dict.fromkeys(map(_command, runs)))
        return f"{reason}; remove {evaluated} and evaluate them again with the same settings: {commands}"
    # A control trains nothing, so its checkpoint may be the other run's start.
    checkpoints = " ".join(dict.fromkeys(_checkpoint(cell) for cell in (one, other)))
    return (
        f"{reason}; evaluate their checkpoints alike, in one matrix: harness evaluate --suite {shlex.quote(_suite(one.run))} "
        f"--checkpoints {checkpoints}"
    )


def _evaluating(run: RunDir) -> dict[str, Any]:
    """Return the part of a run's configuration that, with the weights, decides its answers."""
    config = run.manifest.config
    student = config.get("student") or {}
    named = (*EVALUATING, str(config.get("backend")))  # a backend's settings are under its name
    return {name: config.get(name) for name in named} | {name: student.get(name) for name in OF_STUDENT}


def _command(run: RunDir) -> str:
    """Return the command that made a run; for a run made from Python, one that does the same."""
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
    """Return the words after `harness run` or `harness sweep` in the run's command; none for another command."""
    try:
        words = shlex.split(run.manifest.made.command)
    except ValueError:  # earlier versions did not quote an apostrophe
        return []
    return words[2:] if len(words) > 2 and words[0] == "harness" and words[1] in RUNNING else []


def _checkpoint(cell: CellRef) -> str:
    """Return a cell's checkpoint, quoted for a shell; earlier versions did not record the folder of a start built here."""
    if cell.stage:
        return shlex.quote(str(cell.run.stage(cell.stage).checkpoint))
    student = cell.run.manifest.config.get("student") or {}
    start = cell.run.manifest.start_checkpoint or student.get("path")
    return shlex.quote(str(start)) if start else f"~/.cache/continual-harness/models/{cell.run.start}-*"
