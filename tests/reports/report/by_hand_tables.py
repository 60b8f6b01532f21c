"""Every table of the report's page, recomputed: a caption's pattern, and what makes header and rows from the runs' files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations, pairwise
from re import Match
from typing import Any

import pandas as pd

from tests.reports.report.by_hand import (
    NAN,
    Runs,
    bracketed,
    figure_by_seed,
    flips,
    mean,
    pass_at,
    percent,
    points,
    ratio,
    t_interval,
)
from tests.reports.report.by_hand_pairs import difference

Grid = tuple[list[str], list[list[str]]]
OUTCOMES = ["correct", "wrong", "unparsed", "truncated"]
MATCHED = "matched"
# Name, how it is written, its unit and direction, in the page's order.
FIGURES: dict[str, tuple[str, str]] = {
    "average_accuracy": ("Average accuracy (ACC)", "%\u00a0↑"),
    "learning_accuracy": ("Learning accuracy", "%\u00a0↑"),
    "start_accuracy": ("Accuracy at the start", "%\u00a0↑"),
    "plasticity": ("Plasticity", "points\u00a0↑"),
    "backward_transfer": ("Backward transfer (BWT)", "points\u00a0↑"),
    "forgetting_chaudhry": ("Forgetting (Chaudhry)", "points\u00a0↓"),
    "forgetting_from_start": ("Forgetting from the start", "points\u00a0↓"),
    "forgetting_avalanche": ("Forgetting (Avalanche)", "points\u00a0↓"),
    "retention_ratio": ("Retention ratio", "ratio\u00a0↑"),
    "average_incremental_accuracy": ("Average incremental accuracy (AIA)", "%\u00a0↑"),
    "forward_transfer": ("Forward transfer (FWT)", "points\u00a0↑"),
    "intransigence": ("Intransigence", "points\u00a0↓"),
    "probe_change": ("Probe change", "points\u00a0↑"),
    "probe_forgetting": ("Probe forgetting", "points\u00a0↓"),
}
WRITE: dict[str, Callable[[float], str]] = {
    "%": percent,
    "points": points,
    "ratio": ratio,
}


def glance(runs: Runs, _: Match[str]) -> Grid:
    """Learning accuracy, average accuracy and Chaudhry's forgetting, with intervals over seeds."""
    start: dict[int, float] = {}
    for m in runs.manifests:
        start.setdefault(m["seed"], sum(runs.score(m, 0, task) for task in m["own"]) / len(m["own"]))
    found = t_interval(pd.Series(start))
    rows = [["start", str(found[3]), "–", bracketed(found), "–"]]
    own = runs.manifests[0]["own"]
    taught = [runs.manifests[0]["path"] / "teacher/eval" / task / "results.json" for task in own]
    if all(file.is_file() for file in taught):
        score = sum(json.loads(file.read_text())["score"] for file in taught) / len(own)
        rows.insert(0, ["teacher", "–", "–", f"{100 * score:.1f}", "–"])
    for label in runs.labels:
        learned, final, forgot = (
            t_interval(figure_by_seed(runs, label, name))
            for name in ("learning_accuracy", "average_accuracy", "forgetting_chaudhry")
        )
        rows.append([label, str(learned[3]), bracketed(learned), bracketed(final), bracketed(forgot, points)])
    return ["method", "seeds", "learned % ↑", "at the end % ↑", "forgotten, points ↓"], rows


def matched(runs: Runs, _: Match[str]) -> Grid:
    """Pairs of methods of one order and start: paired differences over common seeds; forgetting where learning matches."""
    groups: dict[tuple[str, str], list[str]] = {}
    for m in runs.manifests:
        if m["kind"] != "none":
            groups.setdefault((m["order"], m["start"]), []).append(m["label"])
    rows = []
    for found in groups.values():
        labels = list(dict.fromkeys(found))
        first = next((m["label"] for m in runs.manifests if m["label"] in labels and m["kind"] == "opd"), labels[0])
        pairs = list(combinations(labels, 2)) if len(labels) <= 4 else [(first, x) for x in labels if x != first]
        rows += [_pair(runs, earlier, later) for earlier, later in pairs]
    return ["methods", "seeds", "at the end, points", "learned, points", "learning is", "forgotten, points ↓"], rows


def _pair(runs: Runs, earlier: str, later: str) -> list[str]:
    learned, final, forgot = (
        (*difference(runs, earlier, later, name)[:3], _seeds(runs, earlier, later, name))
        for name in ("learning_accuracy", "average_accuracy", "forgetting_chaudhry")
    )
    status = how_matched(learned)
    shown = bracketed(forgot, points, most=2.0) if status == MATCHED else "unmatched"
    if learned[3] < 2:
        status, shown = "one seed", "not judged: one seed"
    return [
        f"{later} − {earlier}",
        str(learned[3]),
        bracketed(final, points),
        bracketed(learned, points),
        status,
        shown,
    ]


def _seeds(runs: Runs, earlier: str, later: str, name: str) -> int:
    return len((figure_by_seed(runs, later, name) - figure_by_seed(runs, earlier, name)).dropna())


def how_matched(learned: tuple[float, float, float, int]) -> str:
    """Whether the interval of a difference in learning lies within 5 points, or only its mean."""
    value, low, high, seeds = learned
    if seeds > 2 and high - low > 1e-9 and low >= -0.05 and high <= 0.05:
        return MATCHED
    return "matched on average only" if abs(value) <= 0.05 else "unmatched"


def retention(runs: Runs, match: Match[str]) -> Grid:
    """Scores of one method by stage and task."""
    label, m = match["label"], runs.of(match["label"])[0]
    rows = []
    for stage in range(len(m["stages"]) + 1):
        cells = [t_interval([runs.score(o, stage, task) for o in runs.of(label)]) for task in m["tasks"]]
        name = f"after {m['stages'][stage - 1]['name']}" if stage else "start"
        rows.append([name, *cells])
    most = max(cell[3] for row in rows for cell in row[1:])
    assert str(most) == match["seeds"]
    texts = [[row[0], *(_with_count(cell, most) for cell in row[1:])] for row in rows]
    return ["stage", *(task + " (probe)" * (task in m["probes"]) for task in m["tasks"])], texts


def _with_count(found: tuple[float, float, float, int], expected: int, write: Callable[[float], str] = percent) -> str:
    """A mean with its interval; over how many seeds, where those are fewer than expected."""
    if not found[3]:
        return "–"
    count = f" ({found[3]} seed{'s' * (found[3] != 1)})" if found[3] < expected else ""
    return bracketed(found, write) + count


def task_scores(runs: Runs, match: Match[str]) -> Grid:
    """Scores of one task by method and stage."""
    having = [label for label in runs.labels if match["task"] in runs.of(label)[0]["tasks"]]
    stages = range(1 + max(len(runs.of(label)[0]["stages"]) for label in having))
    rows = []
    for label in having:
        cells = [t_interval([runs.score(m, stage, match["task"]) for m in runs.of(label)]) for stage in stages]
        rows.append([label, *(bracketed(cell) if cell[3] else "–" for cell in cells)])
    return ["method", *(f"after stage {stage}" if stage else "start" for stage in stages)], rows


def draw_flips(runs: Runs, match: Match[str]) -> Grid:
    """Items lost and gained over each stage, mean over seeds of the share."""
    m = runs.of(match["label"])[0]
    rows = []
    for before, after in pairwise(range(len(m["stages"]) + 1)):
        found = [shares(runs, match["label"], task, before, after) for task in m["tasks"]]
        texts = [f"−{percent(f['lost'])} +{percent(f['gained'])}" if len(f) else "–" for f in found]
        rows.append([f"stage {after}", *texts])
    return ["stage", *m["tasks"]], rows


def shares(runs: Runs, label: str, task: str, before: int, after: int) -> pd.Series:
    """Mean over seeds of the shares of items lost, gained, and lost to each outcome; empty where nothing can be compared."""
    found = []
    for m in runs.of(label):
        items = flips(runs, m, task, before, after)
        if len(items):
            lost = {f"lost_{how}": (items["lost"] & (items["now"] == how)).mean() for how in OUTCOMES[1:]}
            found.append({"lost": items["lost"].mean(), "gained": items["gained"].mean(), **lost})
    return pd.DataFrame(found).mean()


def lost_since_own_stage(runs: Runs, _: Match[str]) -> Grid:
    """Forgetting by outcome: items lost since a task's own stage, by the outcome of their last answers."""
    rows = []
    for label in runs.labels:
        m = runs.of(label)[0]
        last = len(m["stages"])
        for task, own in m["own"].items():
            if own < last and len(found := shares(runs, label, task, own, last)):
                lost = [percent(found[f"lost_{how}"]) for how in OUTCOMES[1:]]
                net = points(found["gained"] - found["lost"])
                rows.append([label, task, percent(found["lost"]), *lost, percent(found["gained"]), net])
    names = [f"now {how} %" for how in OUTCOMES[1:]]
    return ["method", "task", "lost %", *names, "gained %", "net, points"], rows


def outcomes(runs: Runs, _: Match[str]) -> Grid:
    """Outcomes at both ends, in % of the answers of all seeds that have both; at the start alone where none has."""
    rows = []
    for label in runs.labels:
        m = runs.of(label)[0]
        cells = runs.cells[runs.cells["label"] == label]
        for task in m["tasks"]:
            at = [cells[(cells["task"] == task) & (cells["stage"] == s)] for s in (0, len(m["stages"]))]
            seeds = {*at[0]["seed"]} & {*at[1]["seed"]}
            at = [end[end["seed"].isin(seeds)] for end in at] if seeds else [at[0], at[1][:0]]
            ends = [_shares_of_outcomes(end) for end in at]
            texts = [" → ".join(percent(end[name]) for end in ends) for name in OUTCOMES]
            rows.append([label, task, str(len(at[0])), str(int(at[0]["n"].sum())), *texts])
    return ["method", "task", "seeds", "items", *(f"{name} %" for name in OUTCOMES)], rows


def _shares_of_outcomes(cells: pd.DataFrame) -> dict[str, float]:
    counts = [c["outcomes"] for c in cells.to_dict("records")]
    total = sum(sum(found.values()) for found in counts)
    return {name: sum(found[name] for found in counts) / total if total else NAN for name in OUTCOMES}


def several_answers(runs: Runs, _: Match[str]) -> Grid:
    """mean@n and pass@k at both ends of finished runs, mean over seeds, from the answers themselves."""
    known = runs.cells[runs.cells.get("samples", pd.Series(1, index=runs.cells.index)) > 1]
    n, pass_ats = int(known["samples"].iloc[0]), list(known["pass_at"].iloc[0])
    rows = []
    for label in runs.labels:
        m = runs.of(label)[0]
        for task in m["tasks"]:
            ends = (0, len(m["stages"]))
            parts = [[runs.answers_of(o, stage, task) for o in runs.of(label)] for stage in ends]
            means = " → ".join(percent(mean([float(a["score"].mean()) for a in part])) for part in parts)
            solved = [" → ".join(percent(mean([pass_at(a, k) for a in part])) for part in parts) for k in pass_ats]
            rows.append([label, task, str(len(runs.of(label))), means, *solved])
    return ["method", "task", "seeds", f"mean@{n} %", *(f"pass@{k} %" for k in pass_ats)], rows


def figure_table(runs: Runs, _: Match[str]) -> Grid:
    """All figures; formula and source are text, and left to the caller to compare."""
    seeds = {label: len(runs.of(label)) for label in runs.labels}
    probes = list(dict.fromkeys(p for m in runs.manifests for p in m["probes"]))
    named = FIGURES | {f"probe_change:{p}": (f"Change of probe {p}", "points\u00a0↑") for p in probes}
    rows = []
    for name, (title, unit) in named.items():
        found = {label: t_interval(_figure(runs, label, name)) for label in runs.labels}
        if name.startswith(("intransigence", "probe_")) and not any(f[3] for f in found.values()):
            continue
        write = WRITE[unit.partition("\u00a0")[0]]
        rows.append([title, *(_with_count(found[label], seeds[label], write) for label in runs.labels), unit])
    counts = ["one seed: no interval" if n == 1 else f"{n} seeds" for n in seeds.values()]
    return ["figure", *(f"{label} ({t})" for label, t in zip(runs.labels, counts, strict=True)), "unit"], rows


def _figure(runs: Runs, label: str, name: str) -> pd.Series:
    probe = name.partition(":")[2]
    missing = probe and probe not in runs.of(label)[0]["probes"]
    return pd.Series(dtype=float) if missing else figure_by_seed(runs, label, name)


def four_decimals(value: Any) -> str:
    """Write a number of nats; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.4f}".replace("-", "−")
