"""Every sentence of the report's page that holds a number of the runs, recomputed from their files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tests.reports.by_hand import WHO, Runs, bracketed, counted, figure_by_seed, flips, percent, points, t_interval
from tests.reports.by_hand_tables import MATCHED, how_matched
from tests.reports.by_hand_training import four_decimals, warnings

Found = tuple[float, float, float, int]
SHOWN, SHOWN_IN_ALL = 300, 3_000
LEARNED, FORGOT = "learning_accuracy", "forgetting_chaudhry"


def sentences(runs: Runs) -> Iterator[str]:
    """Yield all sentences with numbers that the page must hold."""
    told = list(lead(runs))
    yield from told
    yield _setting(runs)
    if not told:
        yield from _methods(runs)
    yield _limits(runs)
    yield from _gaps(runs)
    yield from _overlap(runs)
    yield from _training(runs)
    yield from _drift(runs)
    yield from _links(runs)


def lead(runs: Runs) -> Iterator[str]:
    """One sentence per method beside the first of its order and start that is no control."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in runs.manifests:
        if m["adapter"] != "none":
            groups.setdefault((m["order"], m["start"]), []).append(m["label"])
    for found in groups.values():
        first, *others = dict.fromkeys(found)
        yield from (_beside(runs, first, other) for other in others)


def _beside(runs: Runs, base: str, other: str) -> str:
    learned, forgot = (_difference(runs, base, other, name) for name in (LEARNED, FORGOT))
    seeds = len((figure_by_seed(runs, other, LEARNED) - figure_by_seed(runs, base, LEARNED)).dropna())
    items = sum(len(terms) for terms in _items(runs, base, other, LEARNED))
    parts, after = [f"{other} learned {_amount(learned)} than {base}"], ""
    matched = seeds > 1 and how_matched(learned) == MATCHED
    if math.isnan(forgot[0]):
        after = " Forgetting is not known yet." * (len(runs.of(other)[0]["stages"]) > 1)
    elif matched:
        parts.append(f"forgot {_amount(forgot, unit='')}")
    else:
        why = (
            "learning is not shown to match within ±5 points"
            if seeds > 1
            else "one seed cannot show that learning matches"
        )
        after = f" It forgot {_amount(forgot)}, which is not judged: {why}."
    basis = f"{counted(seeds, 'seed')}, {counted(items, 'item')}"
    if seeds == 1:
        basis += ", so the bracket is over items of this seed alone and says nothing about other seeds"
    elif learned[1] <= 0 <= learned[2] and learned[2] - learned[1] > 1e-9:
        basis += "; the difference in learning is not resolved from zero"
    return f"{' and '.join(parts)}; {basis}.{after}"


def _difference(runs: Runs, base: str, other: str, name: str) -> Found:
    """Other minus base: the t interval over seeds, for one seed the bootstrap over items."""
    by_seed = (figure_by_seed(runs, other, name) - figure_by_seed(runs, base, name)).dropna()
    if len(by_seed) != 1:
        return t_interval(by_seed)
    tasks = _items(runs, base, other, name)
    total, overall = sum(map(len, tasks)), float(np.mean([task.mean() for task in tasks]))
    scaled = [(task - task.mean()) * total / (len(tasks) * len(task)) + overall for task in tasks]
    found = stats.bootstrap(
        (np.concatenate(scaled),), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0), batch=1000
    )
    return overall, float(found.confidence_interval.low), float(found.confidence_interval.high), 2


def _items(runs: Runs, base: str, other: str, name: str) -> list[np.ndarray]:
    """By task the items' differences, mean over seeds: of scores after the own stage, or of drops from the best to the end."""
    both = [(b, o) for b in runs.of(base) for o in runs.of(other) if b["seed"] == o["seed"]]
    last = len(both[0][0]["stages"])
    found = []
    for task, own in both[0][0]["own"].items():
        if name == LEARNED:
            sides = [[_by_item(runs, m, task, own) for m in pair] for pair in both]
        elif own < last:
            sides = [[_drop(runs, m, task, own, last) for m in pair] for pair in both]
        else:
            continue
        found.append(np.mean([(o - b).to_numpy() for b, o in sides], axis=0))
    return found


def _by_item(runs: Runs, m: dict[str, Any], task: str, stage: int) -> pd.Series:
    return runs.answers_of(m, stage, task).groupby("item_id", sort=False)["score"].mean()


def _drop(runs: Runs, m: dict[str, Any], task: str, own: int, last: int) -> pd.Series:
    best = max(range(own, last), key=lambda stage: runs.score(m, stage, task))
    return _by_item(runs, m, task, best) - _by_item(runs, m, task, last)


def _amount(found: Found, unit: str = " points") -> str:
    value, low, high, seeds = found
    low, high = (low, high) if value >= 0 else (-high, -low)
    bracket = f" [{percent(low)},\u00a0{percent(high)}]" if seeds > 1 else ""
    return f"{percent(abs(value))}{unit} {'more' if value >= 0 else 'less'}{bracket}"


def _setting(runs: Runs) -> str:
    suite, starts = runs.manifests[0]["suite"], dict.fromkeys(m["start"] for m in runs.manifests)
    stages = " or ".join(dict.fromkeys(", then ".join(s["name"] for s in m["stages"]) for m in runs.manifests))
    labels = ("; " if any("," in label for label in runs.labels) else ", ").join(runs.labels)
    probes = list(dict.fromkeys(p for m in runs.manifests for p in m["probes"]))
    kept = f" {counted(len(probes), 'probe')} ({', '.join(probes)}) never trained."
    return f"Suite {suite}: the student ({', '.join(starts)} start) was adapted to {stages} by {labels}.{kept}"


def _methods(runs: Runs) -> Iterator[str]:
    """Each method's numbers, and differences between at most three, where no lead sentence compares them."""
    for label in runs.labels:
        learned, final, lost = (
            t_interval(figure_by_seed(runs, label, name)) for name in (LEARNED, "average_accuracy", FORGOT)
        )
        told = f"{label} ({counted(final[3], 'seed')}) scored {bracketed(learned)} % on a task right after its own stage and "
        told += f"{bracketed(final)} % at the end"
        ended = f"; earlier tasks ended {bracketed(lost)} points below their best (Chaudhry)" if lost[3] else ""
        yield f"{told}{ended}."
    for first, second in combinations([x for x in runs.labels if x.split(",")[0] != "none"], 2):
        found = [
            t_interval(figure_by_seed(runs, second, name) - figure_by_seed(runs, first, name))
            for name in (LEARNED, FORGOT)
        ]
        if min(f[3] for f in found) >= 2:
            names = ("learning accuracy", "forgetting (Chaudhry)")
            parts = [
                f"{name} {bracketed(f, points)} points" + ", not resolved from zero" * (f[1] <= 0 <= f[2])
                for name, f in zip(names, found, strict=True)
            ]
            yield f"{second} minus {first}, paired over {found[0][3]} seeds: {'; '.join(parts)}."


def _limits(runs: Runs) -> str:
    fewest, seeds = int(runs.cells["n"].min()), min(len(runs.of(label)) for label in runs.labels)
    several = "Brackets are 95 % t intervals over seeds."
    single = "With one seed there is no interval, and no difference between methods is established."
    error = 196 * math.sqrt(0.25 / fewest)
    told = f"On {fewest} test items, one seed's score is itself uncertain by up to ±{error:.1f} points."
    return f"{several if seeds > 1 else single} {told}"


def _gaps(runs: Runs) -> Iterator[str]:
    for m in runs.manifests:
        for stage, named in enumerate(["start", *(s["name"] for s in m["stages"])]):
            missing = [task for task in m["tasks"] if math.isnan(runs.score(m, stage, task))]
            which = "" if len(missing) == len(m["tasks"]) else f" of {', '.join(missing)}"
            if missing:
                yield f"{m['label']}, seed {m['seed']}: stage {stage} ({named}) has no evaluation{which} yet."


def _overlap(runs: Runs) -> Iterator[str]:
    """The warning, in the headline and below, or the summary; and how many runs recorded nothing."""
    rows = list({tuple(r.values()): r for m in runs.manifests for r in m.get("overlap", {}).get("rows", [])}.values())
    silent = sum("overlap" not in m for m in runs.manifests)
    older = f"{counted(silent, 'run')} did not record whether training prompts occur in test sets."
    exact = [r for r in rows if r["exact"]]
    named = ", ".join(
        f"{r['exact']} of {r['test_items']} of {r['test_task']} in {r['source']} {r['trained_task']}" for r in exact[:3]
    )
    summary = (
        f"Test prompts are also training prompts ({named}), where none was expected: scores on them measure memory; take "
        "these items out of one of the splits, or do not read their scores as learning."
    )
    if exact:
        yield summary
    elif rows:
        short = 100 * sum(r["too_short"] for r in rows) / sum(r["test_items"] for r in rows)
        shared = sum(r["ngram_items"] > 0 for r in rows)
        summary = (
            f"No training prompt occurs in a test set (comparisons: {len(rows)}; {shared} share 13-grams, for which "
            f"{short:.0f} % of the test items are too short)."
        )
    yield " ".join([*([summary] if rows else []), *([older] if silent else [])])


def _training(runs: Runs) -> Iterator[str]:
    """Warnings, pulls and agreement."""
    steps, raised = runs.steps, warnings(runs, None)[1]  # pyright: ignore[reportArgumentType]
    if raised:
        silent = int((~steps.groupby(WHO)["warnings"].agg(lambda column: column.notna().any())).sum())
        older = f" The step logs of {counted(silent, 'run')} do not say." * bool(silent)
        trained, warned = steps.groupby(WHO).ngroups, len({(row[0], row[1]) for row in raised})
        yield f"{counted(len(raised), 'warning')} in {warned} of {counted(trained, 'run')} that trained.{older}"
        yield from [f"All {len(raised)}"] * (len(raised) > 10)
    if "advantage_q01" in steps and steps["advantage_q01"].notna().any():
        told = "; ".join(f"{row[0]} {' and '.join(row[1:3])} nats, a ratio of {row[3]}" for row in _tails(runs))
        yield f"Measured. Advantage of the lowest and of the highest hundredth of tokens, mean over all steps: {told}."
    if "pull_up" in steps and steps["pull_up"].notna().any():
        means: Any = steps.dropna(subset="pull_up").groupby(WHO)[["pull_up", "pull_down"]].mean()
        told = []
        for label in [x for x in runs.labels if x in means.index]:
            up, down = means.loc[label, "pull_up"], means.loc[label, "pull_down"]
            ratio = bracketed(t_interval(down / up), four_decimals)
            told.append(f"{label} {four_decimals(up.mean())} up and {four_decimals(down.mean())} down, ratio {ratio}")
        yield f"Measured. Mean over all steps: {'; '.join(told)}."
    if "overlap" in steps and steps["overlap"].notna().any():
        yield f"Measured. Over the last stage: {'; '.join(_agreements(runs))}."


def _tails(runs: Runs) -> Iterator[tuple[str, str, str, str]]:
    """Name, lowest and highest hundredth, and their ratio: means over a run's steps, then over seeds."""
    means: Any = runs.steps.dropna(subset="advantage_q01").groupby(WHO)[["advantage_q01", "advantage_q99"]].mean()
    for label in [x for x in runs.labels if x in means.index]:
        low, high = means.loc[label].mean()
        yield label, f"{low:.2f}".replace("-", "−"), f"{high:+.2f}".replace("-", "−"), f"{abs(low) / abs(high):.2f}"


def _agreements(runs: Runs) -> Iterator[str]:
    fields = ["overlap", "student_top_mass", "teacher_top_mass", "top_k"]
    last = runs.steps[runs.steps["stage"] == runs.steps.groupby(WHO)["stage"].transform("max")]
    means: Any = last.dropna(subset="overlap").groupby(WHO)[fields].mean()
    for label in [x for x in runs.labels if x in means.index]:
        overlap, student, teacher, k = means.loc[label].mean()
        yield (
            f"{label} (K = {k:.0f}) overlap {percent(overlap)} %, mass {percent(student)} % of the student's and "
            f"{percent(teacher)} % of the teacher's"
        )


def drops(runs: Runs) -> pd.DataFrame:
    """The drift's rows after a stage, with how far the task's score lies below its best so far."""
    rows = runs.drift[runs.drift["stage"] > 0].to_dict("records")
    by_label = {(m["label"], m["seed"]): m for m in runs.manifests}
    for row in rows:
        m = by_label[row["label"], row["seed"]]
        so_far = [runs.score(m, stage, row["task"]) for stage in range(row["stage"] + 1)]
        row["forgot"] = max(so_far) - so_far[-1]
    return pd.DataFrame(rows)


def _drift(runs: Runs) -> Iterator[str]:
    rows = drops(runs)
    if len(rows):
        rank = stats.spearmanr(rows["kl_to_start"], rows["forgot"]).statistic
        yield f"Measured. Rank correlation (Spearman) over all marks: {rank:.2f}.".replace("-", "−")


def _links(runs: Runs) -> Iterator[str]:
    """Answers that changed, over each stage, since the own stage, and from the start to the end; how many are shown."""
    tasks = list(dict.fromkeys(task for m in runs.manifests for task in m["tasks"]))
    for task in tasks:
        total = 0
        for m in (m for m in runs.manifests if task in m["tasks"]):
            last, own = len(m["stages"]), m["own"].get(task, 0)
            pairs = [(i, i + 1) for i in range(last)] + [(own, last)] * (0 < own < last) + [(0, last)]
            found = [flips(runs, m, task, *pair) for pair in pairs]
            total += sum(int(items["lost"].sum() + items["gained"].sum()) for items in found)
        if total:
            yield f"Read the answers of {task} that changed ({min(total, SHOWN, SHOWN_IN_ALL // len(tasks)):,} of {total:,})"
