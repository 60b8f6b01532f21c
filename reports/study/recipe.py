"""Whether a study's recipe is one to learn from: its starts leave room, its stages teach, and what they take is seen.

Judged at the suite's own start and learning rate, by the methods that train on the student's own answers; forgetting at
every learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from reports.document.blocks import Grid
from reports.document.sentences import format_percent, format_points
from reports.study.data import Results

LIFTED = 0.20  # a share: what a stage should add to its own task for at least one method
STARTS = {"weak": (0.10, 0.60), "strong": (0.60, 0.95)}
NAMED = 8  # at most, of what fits
LEAST_LOST, LEAST_KEPT = 0.05, 0.20  # a share, and a share of the learned score


def recipe_grid(results: Results) -> Grid:
    """Return by task the starts' scores in %, then what each method's own stage adds in points, enough of it strong."""
    tasks, starts, methods = _tasks(results), results.starts, _methods(results)
    rows = [
        [f"{start or 'start'}: before any stage", *(_range(_before(results, start, task)) for task in tasks)]
        for start in starts
    ]
    gains = [[_gain(results, method, task) for task in tasks] for method in methods]
    rows += [[method, *map(format_points, each)] for method, each in zip(methods, gains, strict=True)]
    lifted = {(len(starts) + i, 1 + j) for i, each in enumerate(gains) for j, gain in enumerate(each) if gain >= LIFTED}
    return Grid("Recipe", ["start, then methods", *tasks], rows, frozenset(lifted))


def checks_grid(results: Results) -> Grid:
    """Return what a recipe should do, what was measured, and whether that holds."""
    rows = [*_start_rows(results), _lift_row(results), _forgetting_row(results)]
    return Grid("Checks", ["should be", "measured", "holds"], rows, frozenset((row, 2) for row in range(len(rows))))


def _methods(results: Results) -> list[str]:
    """Return the methods with runs at the suite's own start and rate; the control and off-policy ones are left out."""
    teaching = [m for m in dict.fromkeys(results.points["adapter"]) if m not in results.controls]
    own = results.starts[0]
    return [
        method
        for method in teaching
        if method not in results.off_policy and results.mean(results.own(own, method), "learning_accuracy").seeds
    ]


def _tasks(results: Results) -> dict[str, str]:
    scores = results.frames.scores
    return {str(task): str(cells["role"].iloc[0]) for task, cells in scores.groupby("task", sort=False)}


def _before(results: Results, start: str, task: str) -> pd.Series:
    """Return a task's score by seed before any stage."""
    scores = results.frames.scores
    suites = {results.own(start, method).suite for method in results.plan.base.adapters}
    found = scores[scores["suite"].isin(suites) & (scores["stage"] == 0) & (scores["task"] == task)]
    return found.dropna(subset="score").groupby("seed")["score"].first()


def _range(by_seed: pd.Series) -> str:
    if by_seed.empty:
        return "–"
    spread = f" ({format_percent(by_seed.min())} to {format_percent(by_seed.max())})" if len(by_seed) > 1 else ""
    return format_percent(by_seed.mean()) + spread


def _gain(results: Results, method: str, task: str) -> float:
    """Mean over seeds of R[j][j] - R[j-1][j] at the suite's own start and rate; nan for a probe."""
    scores, config = results.frames.scores, results.own(results.starts[0], method)
    cells = scores[(scores["suite"] == config.suite) & (scores["adapter"] == method) & (scores["task"] == task)]
    cells = cells[cells["order"] == config.order]
    after = cells[cells["own"]].set_index("seed")
    before = cells[cells["stage"].isin(after["stage"] - 1)].set_index("seed")
    return float((after["score"] - before["score"]).mean()) if len(after) else float("nan")


def _start_rows(results: Results) -> Iterator[list[str]]:
    for start in results.starts:
        found = {
            (task, seed): score for task in _tasks(results) for seed, score in _before(results, start, task).items()
        }
        if start not in STARTS or not found:
            continue
        low, high = STARTS[start]
        outside = [
            f"{task} seed {seed}: {format_percent(score)}"
            for (task, seed), score in found.items()
            if not low <= score <= high
        ]
        wanted = f"{start} start: every task and seed between {100 * low:g} and {100 * high:g} % before any stage"
        measured = f"{format_percent(min(found.values()))} to {format_percent(max(found.values()))} %"
        yield [wanted, measured, f"no ({'; '.join(outside)})" if outside else "yes"]


def _lift_row(results: Results) -> list[str]:
    tasks = [task for task, role in _tasks(results).items() if role != "probe"]
    best = {task: [(gain, m) for m in _methods(results) if (gain := _gain(results, m, task)) == gain] for task in tasks}
    most = {task: max(found, default=(float("nan"), "–")) for task, found in best.items()}
    flat = [task for task, (gain, _) in most.items() if not gain >= LIFTED]
    measured = "; ".join(f"{task} {format_points(gain)} ({method})" for task, (gain, method) in most.items())
    wanted = f"each stage lifts its own task by at least {100 * LIFTED:g} points for at least one on-policy method"
    return [wanted, f"most: {measured}", f"no ({', '.join(flat)})" if flat else "yes"]


def _forgetting_row(results: Results) -> list[str]:
    """Look for a method and learning rate whose every seed loses something and not everything."""
    fitting = []
    for method in _methods(results):
        for rate, config in results.rates(results.starts[0], method).items():
            lost, kept = (results.series(config, name).dropna() for name in ("forgetting_chaudhry", "retention_ratio"))
            if len(lost) and len(kept) and lost.min() >= LEAST_LOST and kept.min() >= LEAST_KEPT:
                fitting.append(f"{method} {rate:g}")
    wanted = (
        f"forgetting measurable and not total for some method and lr: every seed forgets at least {100 * LEAST_LOST:g} points "
        f"(Chaudhry) and keeps at least {100 * LEAST_KEPT:g} % of the learned scores"
    )
    more = f" and {len(fitting) - NAMED} more" if len(fitting) > NAMED else ""
    return [wanted, f"so for {', '.join(fitting[:NAMED]) or 'none'}{more}", "yes" if fitting else "no"]
