"""The report's tables of training, claims, cost and provenance, recomputed; and the list of all recomputations by caption."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from re import Match
from typing import Any

import pandas as pd
import yaml
from scipy import stats

from tests.reports.report import by_hand_tables as tables
from tests.reports.report.by_hand import NAN, WHO, Runs, bracketed, percent, t_interval
from tests.reports.report.by_hand_tables import Grid, four_decimals

CLAIMS = Path(__file__).parents[3] / "reports/claims/aopd.yaml"
QUANTILES = ["01", "05", "25", "50", "75", "95", "99"]
WARNINGS = {"truncation": "truncation: more than half of the responses were cut off at the length limit"}
Series = dict[str, pd.Series]


def advantage(runs: Runs, _: Match[str]) -> Grid:
    """Advantage: means over a run's steps, then over seeds; the tail ratio of the means."""
    names = ["advantage_mean", *(f"advantage_q{q}" for q in QUANTILES)]
    steps = runs.steps.reindex(columns=[*WHO, *names, "routed_fkl"]).dropna(subset="advantage_mean")
    means: Any = steps.groupby(WHO)[[*names, "routed_fkl"]].agg(lambda column: column.astype(float).mean())
    rows = []
    for label in runs.labels:
        if label in means.index:
            found = means.loc[label].mean()
            tail = abs(found["advantage_q01"]) / abs(found["advantage_q99"])
            texts = [four_decimals(found[name]) for name in names]
            rows.append(
                [label, str(len(means.loc[label])), *texts, four_decimals(tail), percent(float(found["routed_fkl"]))]
            )
    header = ["method", "seeds", "mean", *(f"{int(q)} %" for q in QUANTILES), "tail ratio", "routed %"]
    return header, rows


def warnings(runs: Runs, _: Match[str]) -> Grid:
    """Every warning of every step."""
    rows = [
        [m["label"], str(m["seed"]), f"{step['stage']}: {step['task']}", str(step["step"]), WARNINGS.get(name, name)]
        for m in runs.manifests
        for step in runs.steps[(runs.steps["label"] == m["label"]) & (runs.steps["seed"] == m["seed"])].to_dict(
            "records"
        )
        for name in (step.get("warnings") if isinstance(step.get("warnings"), list) else [])
    ]
    return ["method", "seed", "stage", "step", "warning"], rows


COUNTS = ("steps", "tokens")
PEAKS = {"peak GiB, training": "train", "peak GiB, evaluation": "evaluate"}


def cost(runs: Runs, _: Match[str]) -> Grid:
    """Means over a label's runs; of peak memory the highest."""
    rows, names = [], []
    for label in runs.labels:
        logs = [runs.steps[(runs.steps["label"] == label) & (runs.steps["seed"] == m["seed"])] for m in runs.of(label)]
        each = pd.DataFrame([_cost_of(m, log) for m, log in zip(runs.of(label), logs, strict=True)])
        found = each.mean().where(~each.columns.isin(list(PEAKS)), each.max())
        names = [str(name) for name in found.index]
        rows.append([label, str(len(logs)), *(_cost_text(name, found[name]) for name in names)])
    return ["method", "runs", *names], rows


def _cost_of(m: dict[str, Any], steps: pd.DataFrame) -> dict[str, float]:
    """What one run cost, by the columns of the table."""
    spent = {phase: _seconds(steps, phase) for phase in ("generate", "teacher", "student")}
    sessions = {phase: sum(s["seconds"][phase] for s in m["sessions"]) for phase in ("evaluate", "models", "total")}
    inside = sum(spent.values()) + sessions["evaluate"] + sessions["models"]
    return {
        "steps": len(steps),
        "tokens": steps["tokens"].sum(),
        **{column: _peak(m, phase) for column, phase in PEAKS.items()},
        **{f"{phase}\u00a0s": seconds for phase, seconds in spent.items()},
        "whole step\u00a0s": _seconds(steps, "step"),
        **{f"{phase}\u00a0s": seconds for phase, seconds in sessions.items()},
        "outside\u00a0%": 1 - inside / sessions["total"],
    }


def _peak(m: dict[str, Any], phase: str) -> float:
    """Bytes, the highest of a run's sessions."""
    return max((s.get("peak_memory", {}).get(phase, NAN) for s in m["sessions"]), default=NAN)


def _cost_text(name: str, value: float) -> str:
    if name in PEAKS:
        return "–" if value != value else f"{value / 2**30:.2f}"
    if name.endswith("%"):
        return percent(value)
    return f"{value:,.0f}" if name in COUNTS else f"{value:,.1f}"


def _seconds(steps: pd.DataFrame, phase: str) -> float:
    return sum(spent[phase] for spent in steps["seconds"])


def claims(runs: Runs, match: Match[str]) -> Grid:
    """The shipped claims on runs without the profile `paper` and without curves: only entropy in training can be measured.

    They are tested once, in the order of the first runs.
    """
    file: dict[str, Any] = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    order = f", {match['order']}" if match["order"] else ""
    entropy = runs.steps.groupby(WHO)["entropy"].mean()
    effect = t_interval(entropy[f"aopd{order}"] - entropy[f"opd{order}"])
    rows = [
        _claim_row(runs, file, claim, effect, order)
        for claim in _in_order(file)
        if "start=one" not in claim["expression"]
    ]
    columns = ["claim", "profile", "reported", "compared here", "effect [95 %]", "over seeds", "seeds", "p", "verdict"]
    kept = [i for i, name in enumerate(columns) if name == "verdict" or any(row[i] != "–" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _in_order(file: dict[str, Any]) -> list[dict[str, Any]]:
    """The primary claims in their order, then the others in the file's."""
    by_name = {claim["name"]: claim for claim in file["claims"]}
    return [by_name[name] for name in dict.fromkeys([*file["primary"], *by_name])]


def _claim_row(
    runs: Runs, file: dict[str, Any], claim: dict[str, Any], effect: tuple[float, float, float, int], order: str
) -> list[str]:
    first, start = runs.manifests[0]["stages"][0]["trains"][0], runs.manifests[0]["start"]
    scope, reported = claim.get("scope", {}), claim.get("reported", "–")
    best = ", best learning rate" * (scope.get("rate") == "best") + ", at equal learning" * ("at" in claim)
    text = f"{claim['text'].replace('{task}', first)}, {start} start{best}"
    if isinstance(reported, dict):
        reported = f"{reported[start]:+.2f} points, {claim['reported_in']}" if start in reported else "–"
    if claim["name"] == "entropy":
        shown = bracketed(effect, lambda nats: f"{nats:+.3f}".replace("-", "−"))
        bracket = shown.partition(" ")[2] if effect[3] > 1 else "–"
        return [
            text,
            "–",
            reported,
            claim["compared"],
            f"{shown} nats",
            bracket,
            str(effect[3]),
            _p(effect),
            "exploratory",
        ]
    profile = claim.get("profile", file["profile"])
    answered = profile in runs.manifests[0].get("profiles", [])
    lacks = "no learning curves" if answered and "at" in claim else f"aopd was not evaluated under profile {profile}"
    if scope.get("stage") == "branch":
        lacks = f"no runs of aopd from the {start} start that begin a stage at a trained checkpoint of all methods"
    reason = f"not testable: {lacks}"
    tested = claim["name"] in file["primary"] and order in ("", f", {runs.manifests[0]['order']}")
    verdict = f"{'exploratory, ' * (not tested)}{reason}"
    return [text, profile, reported, "–", "–", "–", "–", "–", verdict]


def _p(effect: tuple[float, float, float, int]) -> str:
    """The two-sided t test that the interval inverts; a dash for fewer than three seeds or without width."""
    mean, low, high, seeds = effect
    if seeds < 3 or not high - low > 1e-9:
        return "–"
    error = (high - low) / 2 / stats.t.ppf(0.975, seeds - 1)
    p = 2 * stats.t.sf(abs(mean) / error, seeds - 1)
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def overlap(runs: Runs, _: Match[str]) -> Grid:
    """Every distinct comparison of training with test prompts that found something."""
    rows = {tuple(sorted(row.items())): row for m in runs.manifests for row in m.get("overlap", {}).get("rows", [])}
    texts = [
        [
            f"{r['source']} {r['trained_task']}",
            *(str(r[key]) for key in ("training_items", "test_task", "test_items", "exact", "ngram_items")),
            percent(r["ngram_share_mean"]),
            str(r["too_short"]),
        ]
        for r in rows.values()
        if r["exact"] or r["ngram_items"]
    ]
    names = ["trained in", "training items", "test task", "test items", "exact", "13-gram hits", "mean share %"]
    return [*names, "too short"], texts


def provenance(runs: Runs, _: Match[str]) -> Grid:
    """The runs' seeds, code, configuration, times and commands."""
    rows = []
    for m in runs.manifests:
        code = (m["git"]["commit"] or "unknown")[:12] + " with local changes" * m["git"]["dirty"]
        times = [m["created"][:16], (m["finished"] or "not finished")[:16]]
        rows.append([m["label"], str(m["seed"]), code, m["config_hash"], *times, m["command"]])
    return ["method", "seed", "commit", "configuration", "created", "finished", "command"], rows


def weights(runs: Runs, _: Match[str]) -> Grid:
    """The digests of weights."""
    names = list(dict.fromkeys(name for m in runs.manifests for name in m["weights"]))
    rows = [[m["label"], str(m["seed"]), *(m["weights"].get(name, "–") for name in names)] for m in runs.manifests]
    return ["method", "seed", *names], rows


def settings(key: str, kind: str) -> Callable[[Runs, Match[str]], Grid]:
    """Packages or hardware: every value of each."""

    def make(runs: Runs, _: Match[str]) -> Grid:
        names = list(dict.fromkeys(name for m in runs.manifests for name in m[key]))
        values = [dict.fromkeys(str(m[key].get(name, "absent")) for m in runs.manifests) for name in names]
        return [kind, "value"], [[name, " / ".join(found)] for name, found in zip(names, values, strict=True)]

    return make


RECOMPUTED: dict[str, Callable[[Runs, Match[str]], Grid]] = {
    r"Methods at a glance, mean with 95 % interval over seeds": tables.glance,
    r"Paired differences, and what was kept where learning is matched": tables.matched,
    r"Claims(, (?P<order>.+))?": claims,
    r"(?P<label>.+), (?P<seeds>\d+) seeds?": tables.retention,
    r"Flips, (?P<label>.+), % of items": tables.draw_flips,
    r"Items lost and gained between a task's own stage and the end, mean over seeds": tables.lost_since_own_stage,
    r"Outcomes": tables.outcomes,
    r"Advantage in nats, mean over steps and seeds; tail ratio: \|1 %\| over \|99 %\|": advantage,
    r"Warnings in training": warnings,
    r"Several answers of each item": tables.several_answers,
    r"(?P<task>.+): score in %": tables.task_scores,
    r"Cost": cost,
    r"Figures": tables.figure_table,
    r"Training prompts in test sets": overlap,
    r"Runs": provenance,
    r"Weights": weights,
    r"Packages": settings("packages", "package"),
    r"Hardware": settings("hardware", "part"),
}


def recompute(runs: Runs, caption: str) -> Grid | None:
    """Return header and rows of a table by its caption; None where nothing recomputes it."""
    for pattern, make in RECOMPUTED.items():
        if match := re.fullmatch(pattern, caption):
            return make(runs, match)
    return None
