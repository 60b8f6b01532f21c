"""A study's tables and the sentences that stand with them: what was done, claims, pairs, factors, recipe, provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from harness.study import Factor
from reports.study_claims import Pair, claims, pairs
from reports.study_data import OPD, THRESHOLD, Config, Results
from reports.style import short_names
from reports.tables import Interval
from reports.views import Grid
from reports.words import percent, points, with_interval

LIFTED = 0.20  # a share: what a stage should add to its own task for at least one adapter


def nats(value: float) -> str:
    """Write an entropy; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def nats_more(value: float) -> str:
    """Write a difference of entropies, with its sign."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "learning_accuracy": ("learning %", percent),
    "average_accuracy": ("ACC %", percent),
    "forgetting_chaudhry": ("forgetting, Chaudhry", points),
    "forgetting_from_start": ("forgetting, from start", points),
    "backward_transfer": ("BWT", points),
    "intransigence": ("intransigence", points),
    "entropy": ("entropy, nats", nats),
    "entropy_last": ("entropy, last stage", nats),
    "routed_share": ("routed %", percent),
    "truncated_share": ("truncated %", percent),
}
MOVED = {"learning_accuracy": "learning", "forgetting_chaudhry": "forgetting", "entropy": "entropy"}


def claims_grid(results: Results) -> Grid:
    """Return the paper's claims with what was compared, the paired difference and the verdict in bold."""
    rows = []
    for claim in claims(results):
        write = points if claim.unit == "points" else nats_more
        estimate = with_interval(claim.difference, write) + f" {claim.unit}"
        seeds = str(claim.difference.seeds or "–")
        shown = estimate if claim.difference.seeds else "–"
        rows.append([claim.claim, claim.paper, claim.compared, shown, seeds, claim.verdict])
    header = ["claim", "paper", "compared here, AOPD minus OPD", "difference [95 %]", "seeds", "verdict"]
    return Grid("Claims", header, rows, frozenset((row, 5) for row in range(len(rows))))


def pairs_grid(results: Results) -> Grid:
    """Return each AOPD setting beside the OPD setting closest in learning, with paired differences."""
    first = short_names([stage.task for stage in results.plan.base.stages])[results.first_task]
    header = ["start", "AOPD lr", "OPD lr", "seeds", "learning", "interval within margin", "forgetting, Chaudhry"]
    header += [f"{first} after its stage", f"{first} retention", "verdict"]
    return Grid("Pairs", header, [_pair_row(pair) for pair in pairs(results)])


def _pair_row(pair: Pair) -> list[str]:
    learning, *others = (
        with_interval(each, points) for each in (pair.learning, pair.forgetting, pair.first_learned, pair.retained)
    )
    inside = "yes" if pair.equivalent else "no" if pair.learning.seeds > 1 else "one seed"
    rates = [f"{rate:g}" for rate in pair.rates]
    verdict = "matched" if pair.matched else "unmatched"
    return [pair.start, *rates, str(pair.learning.seeds), learning, inside, *others, verdict]


def factor_grid(results: Results, name: str) -> Grid:
    """Return one row per setting and method: mean figures with 95 % t interval over the factor's own seeds.

    Columns without data are left out.
    """
    factor, groups = results.plan.study.factors[name], _groups(results, name)
    known = [figure for figure in COLUMNS if any(results.mean(group.config, figure).seeds for group in groups)]
    rows = []
    for setting, config, seeds in groups:
        cells = [_cell(results.mean(config, figure, seeds), COLUMNS[figure][1]) for figure in known]
        rows.append([_named(setting, config, factor, results), config.adapter, str(len(seeds)), *cells])
    header = ["setting", "method", "seeds", *(COLUMNS[figure][0] for figure in known)]
    if _methods_only(factor):
        return Grid(factor.title, header[1:], [row[1:] for row in rows])
    return Grid(factor.title, header, rows)


def factor_sentence(results: Results, name: str) -> str:
    """Return which settings move learning, forgetting or entropy beyond what seeds do, paired over seeds."""
    factor, groups = results.plan.study.factors[name], _groups(results, name)
    reference = "OPD" if _methods_only(factor) else "the same method at the suite's own setting"
    if max(len(group.seeds) for group in groups) < 2:
        return f"One seed: no difference from {reference} can be resolved."
    found = [moved for group in groups for moved in _moved(results, factor, group)]
    resolved = f"resolved from zero: {'; '.join(found)}." if found else "no difference is resolved from zero."
    return f"Against {reference}, paired over seeds, {resolved}"


class _Group(NamedTuple):
    """The seeds of one setting and method under one factor."""

    setting: str
    config: Config
    seeds: tuple[int, ...]


def _groups(results: Results, name: str) -> list[_Group]:
    rows = results.points[results.points["factor"] == name].groupby(["setting", *Config._fields], sort=False)
    return [_Group(str(keys[0]), Config(*map(str, keys[1:])), tuple(cells["seed"])) for keys, cells in rows]


def _cell(interval: Interval, write: Callable[[float], str]) -> str:
    return with_interval(interval, write) if interval.seeds else "–"


def _methods_only(factor: Factor) -> bool:
    return factor.key is None and len(factor.orders) == 1


def _named(setting: str, config: Config, factor: Factor, results: Results) -> str:
    """Name a setting, and say which one is the suite's own and which are a method's limits."""
    limits = {"-1": " (pure FKL)", "1": " (pure OPD)"} if (factor.key or "").endswith(THRESHOLD) else {}
    own = factor.key is not None and config.suite == results.plan.base.name
    return f"{setting.replace('-', '−') if limits else setting}{limits.get(setting, '')}{' (own)' * own}"


def _moved(results: Results, factor: Factor, group: _Group) -> Iterator[str]:
    setting, config, _ = group
    reference = Config(results.plan.base.name, OPD if _methods_only(factor) else config.adapter)
    for figure, called in MOVED.items():
        change = results.paired(config, reference, figure)
        if config != reference and (change.low > 0 or change.high < 0):
            write, unit = (nats_more, " nats") if figure == "entropy" else (points, "")
            yield f"{' '.join(filter(None, [config.adapter, setting]))}: {called} {with_interval(change, write)}{unit}"


def recipe_grid(results: Results) -> Grid:
    """Return per task the starts' scores and what each method's own stage adds to it, in %, and points."""
    scores = results.frames.scores
    own = scores[(scores["suite"].isin(_own_suites(results))) & (scores["order"] == "default")]
    methods = list(own[["start", "adapter"]].drop_duplicates().itertuples(index=False, name=None))
    header = ["task", *(f"{start or 'start'}: before any stage" for start in results.starts)]
    header += [f"{adapter}, {start}: own stage" for start, adapter in methods] + [f"lifted ≥ {100 * LIFTED:g}"]
    rows = []
    for task, cells in own.groupby("task", sort=False):
        before = [_range(cells[(cells["start"] == start) & (cells["stage"] == 0)]) for start in results.starts]
        gains = [_gain(cells[(cells["start"] == start) & (cells["adapter"] == name)]) for start, name in methods]
        lifted = "–" if cells["role"].iloc[0] == "probe" else _lifted(gains, methods)
        rows.append([str(task), *before, *(points(gain) for gain in gains), lifted])
    return Grid("Recipe", header, rows)


def _own_suites(results: Results) -> list[str]:
    return [suite for start in results.starts for rate, suite in results.rates(start).items() if rate == results.rate]


def _range(cells: pd.DataFrame) -> str:
    by_seed = cells.groupby("seed")["score"].first().dropna()
    if by_seed.empty:
        return "–"
    spread = f" ({percent(by_seed.min())} to {percent(by_seed.max())})" if len(by_seed) > 1 else ""
    return percent(by_seed.mean()) + spread


def _gain(cells: pd.DataFrame) -> float:
    """Mean over seeds of R[j][j] - R[j-1][j]; nan for a probe."""
    after = cells[cells["own"]].set_index("seed")
    before = cells[cells["stage"].isin(after["stage"] - 1)].set_index("seed")
    return float((after["score"] - before["score"]).mean()) if len(after) else float("nan")


def _lifted(gains: Sequence[float], methods: Sequence[tuple[Hashable, Hashable]]) -> str:
    lifting = [
        f"{name} ({start})" if start else str(name)
        for gain, (start, name) in zip(gains, methods, strict=True)
        if gain >= LIFTED
    ]
    return ", ".join(lifting) or "no"


def recipe_sentence(results: Results) -> str:
    """Return whether each stage lifts its own task for at least one adapter."""
    grid = recipe_grid(results)
    flat = [row[0] for row in grid.rows if row[-1] == "no"]
    told = f"not so for {', '.join(flat)}" if flat else "so for every stage"
    return f"A stage should lift its own task by at least {100 * LIFTED:g} points for at least one method: {told}."
