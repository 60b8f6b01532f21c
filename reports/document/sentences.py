"""The report's sentences on the setting, each method's numbers, warnings, and what is missing or limits the numbers.

None of them compares methods: `reports.compare.headline` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from harness.rundir.integrity import REMEDIES
from harness.rundir.reader import IDENTITY, RunDir
from harness.stats.continual import ACCURACY, FIGURES
from harness.stats.intervals import Interval, t_interval
from harness.stats.significance import find_two_groups
from reports.data.cells import role_in_all
from reports.data.frames import Frames
from reports.data.tables import figures_by_seed, without_fixed
from reports.formatting import format_count, format_interval, format_percent

WARNINGS = {
    "never routed": "no token went to forward KL for 10 steps: the method was its policy gradient",
    "always routed": "every token went to forward KL for 10 steps: nothing was reinforced",
    "entropy collapse": "entropy fell below a tenth of what the stage began with",
    "length inflation": "responses grew to more than twice the length that the stage began with",
    "reward fell": "the mean reward fell to less than half of what the stage began with",
    "teacher flat": "the teacher's entropy was nearly that of a uniform distribution: it taught next to nothing",
    "teacher disagrees": "the sampled token was the teacher's most probable one at less than 5 % of the positions",
    "teacher rules out": "the teacher gave more than half of the sampled tokens a probability below 1e-7",
    "non-finite": "a loss or gradient was not finite: training stopped before the weights changed",
    "truncation": "more than half of the responses were cut off at the length limit",
}
FAULTS = 10  # sentences on missing files


def opening_sentences(frames: Frames, *, brief: bool = False) -> list[str]:
    """Return the report's opening sentences: the setting, each method's numbers (not if `brief`), and their limits."""
    memory = [frames.overlap.warning] if frames.overlap and frames.overlap.warning else []
    if brief:
        return [_setting(frames), *memory, *describe_groups(frames), _limits(frames)]
    values = figures_by_seed(frames.scores)
    cells = frames.scores
    methods = [
        _method(label, rows, without_fixed(cells[cells["label"] == label]))
        for label, rows in values.groupby("label", sort=False)
    ]
    return [_setting(frames), *methods, *memory, *describe_groups(frames), _limits(frames)]


def describe_groups(frames: Frames) -> list[str]:
    """Return a warning for each method whose seeds end in two groups, see `find_two_groups`."""
    values = figures_by_seed(frames.scores)
    ends = values[values["figure"] == ACCURACY.name].groupby("label", sort=False)["value"]
    found = {str(label): groups for label, scores in ends if (groups := find_two_groups(scores)) is not None}
    return [
        f"The seeds of {label} end in two groups, at {_range(low)} and {_range(high)} %: the intervals of its figures are too "
        "narrow, and more seeds are needed to say how often each happens."
        for label, (low, high) in found.items()
    ]


def _range(ends: tuple[float, float]) -> str:
    low, high = map(format_percent, ends)
    return low if low == high else f"{low} to {high}"


def list_missing(frames: Frames) -> list[str]:
    """Return one sentence per run and stage that is not complete, and per file that a finished run lacks."""
    runs = frames.scores.groupby(IDENTITY, sort=False)
    gaps = [sentence for run, (_, cells) in zip(frames.runs, runs, strict=True) for sentence in _gaps(run, cells)]
    return [*gaps, *describe_faults(frames)]


def describe_faults(frames: Frames) -> list[str]:
    """Return a sentence for each file that a finished run lacks, at most FAULTS, and one that counts the rest."""
    named = [f"{fault.sentence}; {REMEDIES[fault.remedy]}." for fault in frames.faults[:FAULTS]]
    more = len(frames.faults) - len(named)
    are = "file is" if more == 1 else "files are"
    return [*named, *([f"{more} more {are} missing; see `harness runs verify`."] if more else [])]


def describe_overlap(frames: Frames) -> list[str]:
    """Return what the runs recorded about training prompts in test sets, and how many runs recorded nothing."""
    silent = sum(run.manifest.overlap is None for run in frames.runs)
    recorded = [frames.overlap.summary] if frames.overlap else []
    older = f"{format_count(silent, 'run')} did not record whether training prompts occur in test sets."
    return [*recorded, *([older] if silent else [])]


def count_warnings(frames: Frames) -> str:
    """Return how many warnings training raised in how many runs, and how many runs did not record warnings."""
    noted = frames.steps.groupby(IDENTITY)["warnings"].agg(lambda column: bool(column.notna().any())).astype(bool)
    if not noted.any():
        return "No step log says whether training raised a warning."
    raised, silent = frames.warnings, int((~noted).sum())
    older = f" The step logs of {format_count(silent, 'run')} do not say." if silent else ""
    if raised.empty:
        return f"No training step raised a warning.{older}"
    runs = raised.drop_duplicates(IDENTITY)
    return f"{format_count(len(raised), 'warning')} in {len(runs)} of {format_count(len(noted), 'run')} that trained.{older}"


def describe_warning(warning: str) -> str:
    """Return a warning's name and meaning; the name alone for a warning that this version does not know."""
    return f"{warning}: {WARNINGS[warning]}" if warning in WARNINGS else warning


def _setting(frames: Frames) -> str:
    scores = frames.scores
    starts, suites = (", ".join(value for value in scores[key].unique() if value) for key in ("start", "suite"))
    stages = " or ".join(dict.fromkeys(", then ".join(run.stages) for run in frames.runs))
    roles = scores.groupby("task", sort=False)["role"].agg(role_in_all)
    probes, before = (list(map(str, roles.index[roles == role])) for role in ("probe", "trained before"))
    kept = f" {format_count(len(probes), 'probe')} ({', '.join(probes)}) never trained." if probes else ""
    earlier = f" Trained before the start: {', '.join(before)}." if before else ""
    student = f"student ({starts} start)" if starts else "student"
    methods = ("; " if any("," in label for label in frames.labels) else ", ").join(frames.labels)
    return f"Suite {suites}: the {student} was adapted to {stages} by {methods}.{kept}{earlier}"


def _method(label: object, values: pd.DataFrame, without: str) -> str:
    """Return a method's figures over the seeds that have ended; `without` names the trained tasks that it did not learn."""
    ended = values.loc[(values["figure"] == ACCURACY.name) & values["value"].notna(), "seed"]
    values = values[values["seed"].isin(ended)]

    def figure(name: str) -> Interval:
        return t_interval(values.loc[values["figure"] == name, "value"]).of_unit(FIGURES[name].unit)

    learned, final, lost = map(figure, ("learning_accuracy", "average_accuracy", "forgetting_chaudhry"))
    if not final.seeds:
        return f"{label} has not finished its last stage, so it has no end figures yet."
    sentence = (
        f"{label} ({format_count(final.seeds, 'seed')}) scored {format_interval(learned)} % on a task right after its own "
        f"stage{without} and {format_interval(final)} % at the end"
    )
    if not lost.seeds:
        return f"{sentence}."
    return f"{sentence}; earlier tasks ended {format_interval(lost)} points below their best (Chaudhry)."


def _limits(frames: Frames) -> str:
    """Say what limits the numbers; the choice of n independent items moves a share by up to 1.96 sqrt(0.25 / n), at 0.5."""
    items, independent = frames.fewest_items
    if not items:
        return "Nothing has been evaluated yet."
    error = min(100.0, 100 * 1.96 * math.sqrt(0.25 / independent))
    worth = f", worth {independent:.0f} independent ones" if round(independent) < items else ""
    tested = f"{items} {'' if worth else 'independent '}test items{worth}"
    sampling = f"With {tested}, one seed's score alone is uncertain by up to ±{error:.1f} points."
    return f"{_intervals(frames)} {sampling}"


def _intervals(frames: Frames) -> str:
    """Say what brackets are, and which methods have a single seed and so none; controls count where nothing else ran."""
    trained = [(run, label) for run, label in frames.labelled if not run.manifest.control]
    labels = [label for _, label in trained or frames.labelled]
    alone = [label for label in dict.fromkeys(labels) if labels.count(label) == 1]
    if len(alone) == len(labels):
        return "With one seed there is no interval, and no difference between methods is established."
    several = "Brackets are 95 % intervals: of a score over seeds, of a difference for another seed and other items."
    named = f" With one seed there is no interval, and no difference is established: {'; '.join(alone)}."
    return f"{several}{named * bool(alone)}"


def _gaps(run: RunDir, cells: pd.DataFrame) -> Iterator[str]:
    who, absent = f"{cells['label'].iloc[0]}, seed {run.seed}", cells[cells["score"].isna()]
    for stage, rows in absent.groupby("stage"):
        where = f"stage {stage} ({rows['stage_task'].iloc[0] or 'start'})"
        whole = len(rows) == (cells["stage"] == stage).sum()
        tasks = "" if whole else f" of {', '.join(rows['task'])}"
        yield f"{who}: {where} has no evaluation{tasks} yet."
    if absent.empty and not run.manifest.finished:
        yield f"{who}: all stages are evaluated, but the run is not marked as finished."
