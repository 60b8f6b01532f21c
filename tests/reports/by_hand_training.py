"""The report's tables of training, claims, cost and provenance, recomputed; and the list of all recomputations by caption."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import Match
from typing import Any

import pandas as pd
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from tests.reports import by_hand_tables as tables
from tests.reports.by_hand import NAN, WHO, Runs, bracketed, figure_by_seed, percent, points, t_interval
from tests.reports.by_hand_tables import Grid, four_decimals, how_matched

CLAIMS = Path(__file__).parents[2] / "reports/claims/aopd.yaml"
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
    """The paper's claims: effects by seed, t tests, Holm over all, and seeds to resolve by statsmodels' power."""
    found = list(_claims(runs, f", {match['order']}" if match["order"] else ""))
    raw = [_p(effect) if not blocked else NAN for *_, effect, blocked in found]
    known = [place for place, p in enumerate(raw) if p == p]
    after_holm: Any = multipletests([raw[i] for i in known], method="holm")[1] if known else []
    adjusted: dict[int, float] = dict(zip(known, after_holm, strict=True))
    rows = [
        [text, reported, *_judged(effect, unit, adjusted.get(place, NAN), sign, blocked, len(known))]
        for place, (text, reported, unit, sign, effect, blocked) in enumerate(found)
    ]
    return ["claim", "reported", "effect [95 %]", "smallest", "seeds", "p, Holm", "verdict", "seeds to resolve"], rows


def _claims(runs: Runs, order: str) -> Iterator[tuple[str, str, str, int, pd.Series, str]]:
    """Yield text, what is reported, unit, claimed direction, effect by seed, and why it may not be judged."""
    texts = {c["name"]: c["text"] for c in yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))["claims"]}
    first, start = runs.manifests[0]["stages"][0]["trains"][0], runs.manifests[0]["start"]
    aopd, opd = f"aopd{order}", f"opd{order}"
    values = {label: _of_first_task(runs, label, first) for label in (aopd, opd)}
    learned, kept = (values[aopd][name] - values[opd][name] for name in ("learned", "retained"))
    accuracy, forgot = (
        figure_by_seed(runs, aopd, name) - figure_by_seed(runs, opd, name)
        for name in ("learning_accuracy", "forgetting_chaudhry")
    )
    entropy = runs.steps.groupby(WHO)["entropy"].mean()
    shown, at = "+8.34 points, math" if start == "weak" else "–", f", {start} start"
    names = {name: text.replace("{task}", first) + at for name, text in texts.items()}
    yield names["learns-first"], shown, "points", 1, learned, ""
    yield names["learns-all"], "–", "points", 1, accuracy, ""
    yield names["entropy"], "higher", "nats", 1, entropy[aopd] - entropy[opd], ""
    yield names["retains-first"], "better", "points", 1, kept, _not_matched(learned)
    yield names["forgets-less"], "–", "points", -1, forgot, _not_matched(accuracy)


def _of_first_task(runs: Runs, label: str, task: str) -> Series:
    """The score right after its own stage, the first, and what became of it by the end, where a stage follows."""
    last = len(runs.of(label)[0]["stages"])
    learned, final = (pd.Series({m["seed"]: runs.score(m, s, task) for m in runs.of(label)}) for s in (1, last))
    return {"learned": learned, "retained": final - learned if last > 1 else final * NAN}


def _not_matched(learned: pd.Series) -> str:
    status = how_matched(t_interval(learned))
    names = {"matched": "", "matched on average only": "not resolved: learning not shown to match"}
    return names.get(status, "not comparable: learning unmatched")


def _p(effect: pd.Series) -> float:
    known = effect.dropna()
    return float(stats.ttest_1samp(known, 0).pvalue) if len(known) >= 3 and known.std() > 1e-9 else NAN


def _judged(effect: pd.Series, unit: str, p: float, sign: int, blocked: str, tests: int) -> list[str]:
    interval = t_interval(effect)
    if not interval[3]:
        return ["–", "any", "–", "–", "no runs", "–"]
    write = points if unit == "points" else (lambda nats: f"{nats:+.3f}".replace("-", "−"))
    verdict, needed = blocked, "–"
    if not blocked:
        verdict = _verdict(interval, p, sign, unit)
        needed = _needed(effect.dropna(), tests) if verdict.startswith("not resolved") else "–"
    p_value = "–" if p != p else "<0.001" if p < 0.001 else f"{p:.3f}"
    return [f"{bracketed(interval, write)} {unit}", "any", str(interval[3]), p_value, verdict, needed]


def _verdict(interval: tuple[float, float, float, int], p: float, sign: int, unit: str) -> str:
    value, low, high, seeds = interval
    if seeds < 3 or high - low <= 1e-9:
        return f"not resolved: {'fewer than 3 seeds' if seeds < 3 else 'all seeds have the same effect'}"
    apart = low > 0 or high < 0
    if apart and p <= 0.05:
        return "supported" if sign * value > 0 else "contradicted"
    half = percent((high - low) / 2) if unit == "points" else f"{(high - low) / 2:.3f}"
    return f"not resolved{' after Holm' * apart} (half-width {half} {unit})"


def _needed(effect: pd.Series, tests: int) -> str:
    """The fewest seeds, more than there are and at least 3, with 80 % power at 5 % over the number of tests; to 200."""
    if len(effect) < 2 or effect.std() <= 1e-9:
        return "–"
    size, most = abs(effect.mean()) / effect.std(), 200
    power = TTestPower()
    enough = (
        n for n in range(2, most + 1) if power.power(size, n, 0.05 / max(tests, 1), alternative="two-sided") >= 0.8
    )
    found = next(enough, None) if size else None
    return f">{most}" if found is None else str(max(found, len(effect) + 1, 3))


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
