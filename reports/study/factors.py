"""One factor of a study: a table of its settings, the differences from the reference, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from harness.config.study_file import Factor
from harness.stats.intervals import Interval, has_width, resolved
from harness.stats.looks import ALPHA, FEWEST_SEEDS
from reports.claims.render_verdicts import half_width
from reports.document.blocks import Block, Grid, Heading, Picture, Text
from reports.figures.draw_factor import PANELS, draw_factor
from reports.formatting import format_count, format_interval, format_nats, format_percent, format_points
from reports.study.contrasts import MOVED, contrasts_grid, find_contrasts
from reports.study.study_plan import STARTS, Config
from reports.study.study_results import Results, has_own_stages
from reports.study.training_pictures import training_pictures

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
PAIRED = "Bold: the interval excludes zero. Forgetting compares methods only where learning is matched."
SWEPT = (
    "Marks are means over seeds, bars run from the lowest to the highest seed. Dashed lines: methods at the suite's own "
    "setting, over the same seeds."
)


def factor_blocks(results: Results, name: str) -> list[Block]:
    """Return a factor's part of the page: what it varies, its table, paired differences, figures, and what they show."""
    factor = results.plan.study.factors[name]
    contrasts = find_contrasts(results, factor) if factor.of_entries else []
    paired = (
        [contrasts_grid(contrasts, results.titled("Paired differences")), Text(PAIRED, "note")] if contrasts else []
    )
    swept = results.swept(name)
    pictures = [_picture(results, name, factor, swept)] if swept else []
    if len(swept) == 1:
        named = {config: f"{entry} at {v:g}" for entry, by_value in swept.items() for v, config in by_value.items()}
        pictures += training_pictures(results, name, named, shades=True)
    return [
        Heading(f"factor-{name}", factor.title),
        Text(f"{describe_setting(factor)}{f' {factor.note}' if factor.note else ''}"),
        factor_grid(results, name),
        *paired,
        *pictures,
        *(Text(describe_extremes(results, name, entry), "measured") for entry in swept),
        Text(describe_factor(results, name), "measured"),
    ]


def describe_setting(factor: Factor) -> str:
    """Return a sentence on what a factor varies and fixes, for the line above its table."""
    fixed = ", ".join(f"{key}: {json.dumps(value)}" for key, value in factor.fixed.items())
    varied = factor.key or ("the order of the stages" if len(factor.orders) > 1 else "the adapter")
    return f"Varied: {varied}{f', with {fixed}' if fixed else ''}."


def factor_grid(results: Results, name: str) -> Grid:
    """Return one row per setting and method: mean figures with 95 % t interval over the factor's own seeds.

    Columns without data are left out.
    """
    factor, groups = results.plan.study.factors[name], _groups(results, name)
    known = [figure for figure in COLUMNS if any(results.mean(group.config, figure).seeds for group in groups)]
    rows = []
    for setting, config, seeds in groups:
        cells = [format_interval(results.mean(config, figure, seeds), COLUMNS[figure][1]) for figure in known]
        own = factor.key is not None and config.suite == results.layout.own_suite
        rows.append([f"{setting.replace('-', '−')}{' (own)' * own}", config.adapter, str(len(seeds)), *cells])
    header = ["setting", "method", "seeds", *(COLUMNS[figure][0] for figure in known)]
    if factor.of_entries:
        return Grid(results.titled(factor.title), header[1:], [row[1:] for row in rows])
    return Grid(results.titled(factor.title), header, rows)


def describe_factor(results: Results, name: str) -> str:
    """Return which settings change learning, forgetting or entropy, of how many comparisons, and how wide the intervals are.

    Where only entries are varied, the settings are not named, because the table of paired differences shows them.
    """
    factor, groups = results.plan.study.factors[name], _groups(results, name)
    reference = _name_reference(results, factor)
    changes = [change for group in groups for change in _changes(results, factor, group)]
    judged = [change for change in changes if has_width(change.difference, FEWEST_SEEDS)]
    if not judged:
        return f"No difference from {reference} is judged: fewer than {FEWEST_SEEDS} seeds."
    paired = "seeds of other starts are not pairs" if factor.key in STARTS else "paired over seeds"
    found = [change for change in judged if resolved(change.difference)]
    named = f": {'; '.join(_describe(change) for change in found)}" if found and not factor.of_entries else ""
    return (
        f"Against {reference}, {paired}: {format_count(len(judged), 'comparison')}, about "
        f"{ALPHA * len(judged):.1f} expected by chance to exclude zero, {len(found)} do{named}. {_half_widths(judged)}"
    )


def describe_extremes(results: Results, name: str, entry: str) -> str:
    """Return a sentence on the values where an entry's learning is highest and its forgetting lowest, with differences.

    Differences are paired: from the entry at the suite's own setting, and from its reference there.
    """
    by_value = results.swept(name)[entry]
    ends = [
        _describe_extreme(results, entry, by_value, "learning_accuracy", "learning is highest", "%", max),
        _describe_extreme(results, entry, by_value, "forgetting_chaudhry", "forgetting is lowest", "points", min),
    ]
    known = [end for end in ends if end]
    seeds = max(results.mean(config, "learning_accuracy").seeds for config in by_value.values())
    caution = "One seed: no difference is established." if seeds < 2 else "Both are chosen on the same seeds."
    return f"{entry}: {'; '.join(known)}. {caution}" if known else f"{entry}: no value has a figure yet."


class _Group(NamedTuple):
    """The seeds of one setting and method under one factor."""

    setting: str
    config: Config
    seeds: tuple[int, ...]


class _Change(NamedTuple):
    """The paired difference of one figure between a setting and its reference."""

    setting: str
    figure: str
    difference: Interval


def _groups(results: Results, name: str) -> list[_Group]:
    rows = results.points[results.points["factor"] == name].groupby(["setting", *Config._fields], sort=False)
    return [_Group(str(keys[0]), Config(*map(str, keys[1:])), tuple(cells["seed"])) for keys, cells in rows]


def _name_reference(results: Results, factor: Factor) -> str:
    if not factor.of_entries:
        if has_own_stages(factor) and factor.values:
            return f"the same method at {factor.values[0]}"
        return "the same method at the suite's own setting"
    study = results.plan.study
    references = {study.reference(entry, factor) for entry in factor.entries or study.entries} - {None}
    return str(references.pop()) if len(references) == 1 else "each method's reference"


def _changes(results: Results, factor: Factor, group: _Group) -> Iterator[_Change]:
    entry = group.config.adapter
    if factor.of_entries:
        reference = results.in_factor(factor, results.plan.study.reference(entry, factor) or entry)
    else:
        reference = (
            results.in_factor(factor, entry) if has_own_stages(factor) else Config(results.layout.own_suite, entry)
        )
    setting = " ".join(filter(None, [entry, group.setting]))
    for figure in MOVED if group.config != reference else ():
        yield _Change(setting, figure, results.paired(group.config, reference, figure, group.seeds))


def _describe(change: _Change) -> str:
    called, write, unit = MOVED[change.figure]
    return f"{change.setting}: {called} {format_interval(change.difference, write)} {unit}"


def _describe_extreme(
    results: Results,
    entry: str,
    by_value: Mapping[float, Config],
    figure: str,
    called: str,
    unit: str,
    best: Callable[..., float],
) -> str:
    """Write the value where a figure is extreme, with paired differences; empty where no value has the figure."""
    means = {value: results.mean(config, figure) for value, config in by_value.items()}
    known = {value: mean for value, mean in means.items() if mean.seeds}
    if not known:
        return ""
    value = best(known, key=lambda each: known[each].mean)
    base, reference = results.layout.own_suite, results.plan.study.reference(entry)
    changes = [
        f"{format_interval(change, format_points)} against {other} at the suite's own setting"
        for other in filter(None, (entry, reference))
        if by_value[value] != Config(base, other)
        and (change := results.paired(by_value[value], Config(base, other), figure)).seeds
    ]
    paired = f" (paired, in points: {', '.join(changes)})" if changes else ""
    return f"{called} at {f'{value:g}'.replace('-', '−')}, {format_interval(known[value])} {unit}{paired}"


def _half_widths(changes: Sequence[_Change]) -> str:
    """Return a sentence on the range of half-widths of each figure, which an effect must exceed to exclude zero."""
    parts = []
    for figure, (called, _, unit) in MOVED.items():
        found = sorted((c.difference for c in changes if c.figure == figure), key=lambda d: d.high - d.low)
        if found:
            ends = dict.fromkeys(half_width(each, unit) for each in (found[0], found[-1]))
            parts.append(f"{called} {' to '.join(ends)} {unit}")
    return f"Half-width of the intervals, which an effect must exceed to exclude zero: {', '.join(parts)}."


def _picture(results: Results, name: str, factor: Factor, swept: dict[str, dict[float, Config]]) -> Picture:
    """Return a factor's figures against its values, with the suite's own setting as a level where it is not a value."""
    study, base = results.plan.study, results.layout.own_suite
    seeds = factor.seeds or study.seeds
    named = [*swept, *filter(None, (study.reference(entry) for entry in swept))]
    settings = [(entry, value, config) for entry, by_value in swept.items() for value, config in by_value.items()]
    inside = {config for _, _, config in settings}
    own = [
        (entry, float("nan"), Config(base, entry))
        for entry in dict.fromkeys(named)
        if Config(base, entry) not in inside
    ]
    rows = [
        {"entry": entry, "value": value, "figure": figure, "score": score}
        for entry, value, config in [*settings, *own]
        for figure in PANELS
        for seed, score in results.series(config, figure).items()
        if seed in seeds
    ]
    table = pd.DataFrame(rows)
    title = f"{factor.title}: learning, forgetting and training against its values"
    return Picture(f"factor-{name}", title, SWEPT, lambda: draw_factor(table, factor.title), optional=True)
