"""Run directories read again with plain pandas, and their figures written out, as a check on the report.

Nothing of `harness` or `reports` is imported here: what both sides shared, both could have wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

FIRST = ["none", "sft", "opd", "aopd"]
WHO = ["label", "seed"]
NAN = float("nan")


@dataclass(frozen=True)
class Runs:
    """What a suite's run directories hold under one profile; `label` is the adapter, and order and start where they vary."""

    manifests: list[dict[str, Any]]
    answers: pd.DataFrame
    cells: pd.DataFrame
    steps: pd.DataFrame
    drift: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the page."""
        return list(dict.fromkeys(m["label"] for m in self.manifests))

    def of(self, label: str) -> list[dict[str, Any]]:
        """The manifests of a label, by seed."""
        return [m for m in self.manifests if m["label"] == label]

    def score(self, manifest: dict[str, Any], stage: int, task: str) -> float:
        """One R[i][j]; nan where it is missing."""
        return self._scores.get((manifest["label"], manifest["seed"], stage, task), NAN)

    @cached_property
    def _scores(self) -> dict[tuple[Any, ...], float]:
        scores: Any = self.cells.set_index([*WHO, "stage", "task"])["score"]
        return scores.to_dict()

    def answers_of(self, manifest: dict[str, Any], stage: int, task: str) -> pd.DataFrame:
        """The answers of one cell; empty where none were kept."""
        return self._answers.get((manifest["label"], manifest["seed"], stage, task), self.answers[:0])

    @cached_property
    def _answers(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        return {tuple(place): rows for place, rows in self.answers.groupby([*WHO, "stage", "task"])}

    def figures(self, manifest: dict[str, Any]) -> dict[str, float]:
        """The figures of one run."""
        place = (manifest["label"], manifest["seed"])
        if place not in self._figures:
            self._figures[place] = figures(self, manifest)
        return self._figures[place]

    @cached_property
    def _figures(self) -> dict[tuple[Any, ...], dict[str, float]]:
        return {}


def read_runs(root: Path, profile: str = "") -> Runs:
    """Read every run below a folder, controls first, then by name."""
    read = [(file, json.loads(file.read_text())) for file in sorted(root.rglob("manifest.json"))]
    found = [{**m["sessions"][0], **m, "path": file.parent} for file, m in read]
    found = [m for m in found if not profile or profile in (m.get("profiles") or {})]
    rank = {m["adapter"]: FIRST.index(m["adapter"]) if m["adapter"] in FIRST else 9 for m in found}
    found.sort(key=lambda m: (rank[m["adapter"]], m["adapter"], m["order"], m["start"] or "", m["seed"]))
    varying = [key for key in ("order", "start") if len({m[key] for m in found}) > 1]
    for m in found:
        m["label"] = ", ".join([m["adapter"], *(m[key] or "-" for key in varying)])
        m["folders"] = ["stage_0", *(f"stage_{i}_{s['name']}" for i, s in enumerate(m["stages"], start=1))]
        m["own"] = {task: i for i, s in enumerate(m["stages"], start=1) for task in s["trains"]}
        m["tasks"] = [t for t in (*m["own"], *m["probes"]) if not profile or t in m["profiles"][profile]]
    answers, cells = _evaluations(found, f"@{profile}" if profile else "")
    return Runs(found, answers, cells, _steps(found), _drift(found))


def _places(manifests: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int, Path]]:
    return [(m, stage, m["path"] / folder) for m in manifests for stage, folder in enumerate(m["folders"])]


def _evaluations(manifests: list[dict[str, Any]], suffix: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read answers and results; a score is the mean over items of the mean over answers, where answers were kept."""
    answers, cells = [], []
    for m, stage, path in _places(manifests):
        for task in m["tasks"]:
            place = {"label": m["label"], "seed": m["seed"], "stage": stage, "task": task}
            folder = path / "eval" / f"{task}{suffix}"
            if not (folder / "results.json").is_file():
                continue
            results = json.loads((folder / "results.json").read_text())
            cells.append({**results, **place})
            if (folder / "samples.parquet").is_file():
                rows = pd.read_parquet(folder / "samples.parquet")
                answers.append(rows.assign(**place, last=len(m["stages"]), own=m["own"].get(task, 0)))
                cells[-1]["score"] = rows.groupby("item_id")["score"].mean().mean()
    return pd.concat(answers, ignore_index=True) if answers else pd.DataFrame(), pd.DataFrame(cells)


def _steps(manifests: list[dict[str, Any]]) -> pd.DataFrame:
    """Read step logs; `global_step` counts on through the stages, each as long as its longest run."""
    logs = []
    for m, stage, path in _places(manifests):
        if (path / "train/steps.jsonl").is_file():
            lines = [json.loads(line) for line in (path / "train/steps.jsonl").read_text().splitlines()]
            task = path.name.split("_", 2)[2]
            logs.append(pd.DataFrame(lines).assign(label=m["label"], seed=m["seed"], stage=stage, task=task))
    steps = pd.concat(logs, ignore_index=True)
    lengths = steps.groupby("stage")["step"].max() + 1
    before = {stage: lengths[lengths.index < stage].sum() for stage in lengths.index}
    return steps.assign(global_step=steps["step"] + steps["stage"].map(before))


def _drift(manifests: list[dict[str, Any]]) -> pd.DataFrame:
    """Read the distance from the start: per run, stage and task the mean over its items."""
    parts = [
        pd.read_parquet(path / "drift/samples.parquet")
        .groupby("task", sort=False)["kl_to_start"].mean().reset_index()
        .assign(label=m["label"], seed=m["seed"], stage=stage)
        for m, stage, path in _places(manifests)
        if (path / "drift/samples.parquet").is_file()
    ]  # fmt: skip
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["kl_to_start", "task", *WHO, "stage"])
    )


def figures(runs: Runs, m: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one run, each by its formula; nan where a cell is missing."""

    def R(i: int, j: str) -> float:
        return runs.score(m, i, j)

    own: dict[str, int] = m["own"]
    T, earlier, later = len(m["stages"]), [j for j in own if own[j] < len(m["stages"])], [j for j in own if own[j] > 1]
    kept = [j for j in earlier if R(own[j], j) != 0]
    joint = {j: r for j in own if not math.isnan(r := _joint(runs, m, j))} if m["order"] != "joint" else {}
    return {
        "average_accuracy": mean([R(T, j) for j in own]),
        "learning_accuracy": mean([R(own[j], j) for j in own]),
        "start_accuracy": mean([R(0, j) for j in own]),
        "plasticity": mean([R(own[j], j) - R(own[j] - 1, j) for j in own]),
        "backward_transfer": mean([R(T, j) - R(own[j], j) for j in earlier]),
        "forgetting_chaudhry": mean([peak([R(i, j) for i in range(1, T)]) - R(T, j) for j in earlier]),
        "forgetting_from_start": mean([peak([R(i, j) for i in range(T)]) - R(T, j) for j in earlier]),
        "forgetting_avalanche": mean([R(own[j], j) - R(T, j) for j in earlier]),
        "retention_ratio": mean([R(T, j) / R(own[j], j) for j in kept]),
        "average_incremental_accuracy": mean([mean([R(i, j) for j in own if own[j] <= i]) for i in range(1, T + 1)]),
        "forward_transfer": mean([R(own[j] - 1, j) - R(0, j) for j in later]),
        "intransigence": mean([joint[j] - R(own[j], j) for j in own]) if joint else NAN,
        "probe_change": mean([R(T, p) - R(0, p) for p in m["probes"]]),
        "probe_forgetting": mean([peak([R(i, p) for i in range(T)]) - R(T, p) for p in m["probes"]]),
        **{f"probe_change:{p}": R(T, p) - R(0, p) for p in m["probes"]},
    }


def _joint(runs: Runs, m: dict[str, Any], task: str) -> float:
    """The score after the one stage of the joint run of the same adapter, start and seed."""
    same = [
        o for o in runs.manifests if o["order"] == "joint" and all(o[k] == m[k] for k in ("adapter", "start", "seed"))
    ]
    return runs.score(same[0], 1, task) if same else NAN


def figure_by_seed(runs: Runs, label: str, name: str) -> pd.Series:
    """Return a figure of a label's runs by seed."""
    return pd.Series({m["seed"]: runs.figures(m)[name] for m in runs.of(label)}, dtype=float)


def flips(runs: Runs, m: dict[str, Any], task: str, before: int, after: int) -> pd.DataFrame:
    """Return one row per item of two stages of a run: outcomes before and after, `lost` and `gained`.

    Of an item with several answers the first that is not right counts.
    """
    sides = [_outcome_by_item(runs.answers_of(m, stage, task)) for stage in (before, after)]
    both = pd.concat(sides, axis=1, keys=["was", "now"]).dropna()
    right = both == "correct"
    return both.assign(lost=right["was"] & ~right["now"], gained=~right["was"] & right["now"])


def _outcome_by_item(rows: pd.DataFrame) -> pd.Series:
    wrong_first = rows.assign(right=rows["outcome"] == "correct").sort_values("right", kind="stable")
    return wrong_first.groupby("item_id", sort=False)["outcome"].first()


def pass_at(answers: pd.DataFrame, k: int) -> float:
    """Return the mean over items of 1 - C(n-c, k) / C(n, k)."""
    by_item = answers.groupby("item_id")["score"].agg(n="size", c=lambda scores: (scores == 1).sum())
    return float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in by_item.to_numpy()]))


def mean(values: Sequence[float]) -> float:
    """Mean of all values; nan for none, or where one is nan."""
    return sum(values) / len(values) if values else NAN


def peak(values: Sequence[float]) -> float:
    """The largest value, nan where one is nan."""
    return NAN if any(map(math.isnan, values)) else max(values)


def t_interval(values: Sequence[float] | pd.Series) -> tuple[float, float, float, int]:
    """Return mean, 95 % t interval and count of the values that are there; no interval for fewer than two."""
    known = pd.Series(list(values), dtype=float).dropna()
    if len(known) < 2:
        return (float(known.iloc[0]) if len(known) else NAN), NAN, NAN, len(known)
    half = float(stats.t.ppf(0.975, len(known) - 1)) * float(known.std()) / math.sqrt(len(known))
    return float(known.mean()), float(known.mean()) - half, float(known.mean()) + half, len(known)


def percent(share: float, sign: str = "") -> str:
    """Write a share in % with one decimal, `sign` + for differences; a dash for nan, never minus zero."""
    if math.isnan(share):
        return "–"
    return f"{100 * share:{sign}z.1f}".replace("-", "−")


def points(difference: float) -> str:
    """Write a difference in points."""
    return percent(difference, "+")


def ratio(value: float) -> str:
    """Write a ratio."""
    return f"{value:.2f}".replace("-", "−")


def bracketed(
    found: tuple[float, float, float, int], write: Callable[[float], str] = percent, most: float = 1.0
) -> str:
    """Write `mean [low, high]`, only the mean for fewer than two values; no bound leaves what the quantity can be."""
    value, low, high, seeds = found
    least, highest = {percent: (0.0, 1.0), points: (-most, most), ratio: (0.0, high)}.get(write, (low, high))
    low, high = max(low, least), min(high, highest)
    return write(value) if seeds < 2 else f"{write(value)} [{write(low)},\u00a0{write(high)}]"
