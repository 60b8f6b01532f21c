"""A study's tables of claims, of pairs matched in learning and of factors, and the sentences below the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from harness.config.study import Factor
from harness.stats.intervals import Interval
from reports.claims.judge import CONTRADICTED, LEVEL, NOT_RESOLVED, SEEDS, SUPPORTED
from reports.claims.verdict_views import WRITE, half_width, unresolved
from reports.compare.rows import MATCHED
from reports.document.blocks import Grid
from reports.document.sentences import (
    format_count,
    format_interval,
    format_nats,
    format_nats_change,
    format_p,
    format_percent,
    format_points,
    has_width,
    resolved,
)
from reports.study.data import THRESHOLD, Config, Results
from reports.study.pairs import MatchedPair, Matching, pairs
from reports.study.study_claims import Claim, claims

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "learning_accuracy": ("learning %", format_percent),
    "average_accuracy": ("ACC %", format_percent),
    "forgetting_chaudhry": ("forgetting, Chaudhry", format_points),
    "forgetting_from_start": ("forgetting, from start", format_points),
    "backward_transfer": ("BWT", format_points),
    "intransigence": ("intransigence", format_points),
    "entropy": ("entropy, nats", format_nats),
    "entropy_last": ("entropy, last stage", format_nats),
    "routed_share": ("routed %", format_percent),
    "truncated_share": ("truncated %", format_percent),
}
MOVED = {
    "learning_accuracy": ("learning", format_points, "points"),
    "forgetting_chaudhry": ("forgetting", format_points, "points"),
    "entropy": ("entropy", format_nats_change, "nats"),
}


def claims_grid(results: Results) -> Grid:
    """Return the claims with what was compared, the paired difference, Holm's p value and the verdict in bold."""
    header = ["claim", "paper", "compared here, AOPD minus OPD", "difference [95 %]", "seeds", "p, Holm", "verdict"]
    rows = [_claim_row(claim) for claim in claims(results)]
    return Grid("Claims", header, rows, frozenset((row, len(header) - 1) for row in range(len(rows))))


def claims_sentence(results: Results) -> str:
    """Return which claims show, which are contradicted, and how many neither."""
    found = claims(results)
    shown, against = (
        [claim.claim for claim in found if claim.verdict == verdict] for verdict in (SUPPORTED, CONTRADICTED)
    )
    left = len(found) - len(shown) - len(against)
    told = [
        f"{len(each)} {verb}{' (' * bool(each)}{'; '.join(each)}{')' * bool(each)}"
        for verb, each in (("are supported", shown), ("are contradicted", against))
    ]
    return f"Of {format_count(len(found), 'row')}, {', '.join(told)}, {left} are not resolved or could not be compared."


def pairs_grid(results: Results, matching: Matching) -> Grid:
    """Return each AOPD setting beside the OPD setting closest in learning, with paired differences."""
    header = ["start", "AOPD lr", "OPD lr", "seeds", matching.learned_as, matching.outcome_as, "learning is"]
    rows = [_pair_row(pair) for pair in pairs(results, matching)]
    strong = frozenset((place, len(header) - 1) for place, row in enumerate(rows) if row[-1] == MATCHED)
    return Grid("Pairs", header, rows, strong)


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
    if factor.of_entries:
        return Grid(factor.title, header[1:], [row[1:] for row in rows])
    return Grid(factor.title, header, rows)


def factor_sentence(results: Results, name: str) -> str:
    """Return which settings move learning, forgetting or entropy, of how many comparisons, and what could have shown.

    Where entries alone are varied, the table of paired differences says which.
    """
    factor, groups = results.plan.study.factors[name], _groups(results, name)
    reference = _called(factor)
    changes = [change for group in groups for change in _changes(results, factor, group)]
    judged = [change for change in changes if has_width(change.difference, SEEDS)]
    if not judged:
        return f"No difference from {reference} is judged: fewer than {SEEDS} seeds."
    found = [change for change in judged if resolved(change.difference)]
    told = f": {'; '.join(_told(change) for change in found)}" if found and not factor.of_entries else ""
    return (
        f"Against {reference}, paired over seeds: {format_count(len(judged), 'comparison')}, about {LEVEL * len(judged):.1f} "
        f"expected by chance to leave zero out, {len(found)} do{told}. {_detectable(judged)}"
    )


class _Group(NamedTuple):
    """The seeds of one setting and method under one factor."""

    setting: str
    config: Config
    seeds: tuple[int, ...]


class _Change(NamedTuple):
    """How a figure of one setting differs from the reference's."""

    setting: str
    figure: str
    difference: Interval


def _claim_row(claim: Claim) -> list[str]:
    unit, seeds = claim.entry.unit, claim.difference.seeds
    shown = f"{format_interval(claim.difference, WRITE[unit][1])} {unit}" if seeds else "–"
    told = [shown, str(seeds or "–"), format_p(claim.adjusted), _verdict(claim)]
    return [claim.claim, claim.paper, claim.compared, *told]


def _verdict(claim: Claim) -> str:
    """Say beside `not resolved` what stood in the way."""
    if claim.verdict != NOT_RESOLVED:
        return claim.verdict
    return unresolved(claim.difference, claim.entry.unit, claim.entry.parsed.sign * claim.entry.smallest)


def _pair_row(pair: MatchedPair) -> list[str]:
    rates = [f"{rate:g}" for rate in pair.rates]
    differences = [_cell(each, format_points) for each in (pair.learned, pair.outcome)]
    return [pair.start, *rates, str(pair.learned.seeds), *differences, pair.status]


def _groups(results: Results, name: str) -> list[_Group]:
    rows = results.points[results.points["factor"] == name].groupby(["setting", *Config._fields], sort=False)
    return [_Group(str(keys[0]), Config(*map(str, keys[1:])), tuple(cells["seed"])) for keys, cells in rows]


def _cell(interval: Interval, write: Callable[[float], str]) -> str:
    return format_interval(interval, write) if interval.seeds else "–"


def _named(setting: str, config: Config, factor: Factor, results: Results) -> str:
    """Name a setting, and say which one is the suite's own and which are a method's limits."""
    limits = {"-1": " (pure FKL)", "1": " (pure OPD)"} if (factor.key or "").endswith(THRESHOLD) else {}
    own = factor.key is not None and config.suite == results.plan.base.name
    return f"{setting.replace('-', '−') if limits else setting}{limits.get(setting, '')}{' (own)' * own}"


def _called(factor: Factor) -> str:
    if not factor.of_entries:
        return "the same method at the suite's own setting"
    return factor.against if isinstance(factor.against, str) else "each method's reference"


def _changes(results: Results, factor: Factor, group: _Group) -> Iterator[_Change]:
    entry = group.config.adapter
    compared = factor.reference(entry) if factor.of_entries else entry
    reference = Config(results.plan.base.name, compared or entry)
    setting = " ".join(filter(None, [entry, group.setting]))
    for figure in MOVED if group.config != reference else ():
        yield _Change(setting, figure, results.paired(group.config, reference, figure, group.seeds))


def _told(change: _Change) -> str:
    called, write, unit = MOVED[change.figure]
    return f"{change.setting}: {called} {format_interval(change.difference, write)} {unit}"


def _detectable(changes: Sequence[_Change]) -> str:
    """Return the range of half-widths of each figure: what an effect must exceed to leave zero out."""
    parts = []
    for figure, (called, _, unit) in MOVED.items():
        found = sorted((c.difference for c in changes if c.figure == figure), key=lambda d: d.high - d.low)
        if found:
            ends = dict.fromkeys(half_width(each, unit) for each in (found[0], found[-1]))
            parts.append(f"{called} {' to '.join(ends)} {unit}")
    return f"Smallest detectable effect (half-width): {', '.join(parts)}."
