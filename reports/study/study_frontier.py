"""A study's learning against forgetting: a mark per method, start and learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.config.suite import JOINT
from reports.claims.evidence import name_edge
from reports.document.blocks import Block, Picture, Text
from reports.figures import style
from reports.figures.draw_frontier import draw_frontier
from reports.formatting import format_count, format_interval, format_points
from reports.study.study_plan import Config
from reports.study.study_results import Results

AXES = {"learned": "learning_accuracy", "forgot": "forgetting_chaudhry"}
CAPTION = (
    "Up: learned more. Left: forgot less. Large marks are means over seeds, small dots single seeds, bars 95 % t intervals "
    "over seeds, cut at the frame; they are not a paired test. A hollow mark is one seed. A line joins the learning rates of "
    "a method. Dotted: average accuracy after one stage over all tasks. Forgetting is Chaudhry's: a change of a task in its "
    "own stage counts as learning. A method that learned less had less to forget."
)


def frontier_blocks(results: Results) -> list[Block]:
    """Return the figure and its numbers in sentences; empty where no run has both learning and forgetting."""
    places = frontier_places(results)
    if places.empty:
        return []
    by_seed = pd.DataFrame(
        [
            {"label": label, "learned": learned, "forgot": forgot}
            for label, config in places[["label", "config"]].itertuples(index=False)
            for learned, forgot in zip(*(results.series(config, name) for name in AXES.values()), strict=True)
        ]
    )
    lines = {key: list(rows["label"]) for key, rows in places.groupby("line", sort=False) if len(rows) > 1}
    levels = {f"{method}, all tasks jointly": level for method, level in _joint_levels(results)}
    picture = Picture(
        "frontier",
        "Learning accuracy against forgetting",
        CAPTION,
        lambda: draw_frontier(places, by_seed, lines={str(key): each for key, each in lines.items()}, levels=levels),
    )
    many = len(results.methods) > style.MANY
    reading = describe_family(results) if many else " ".join(_describe_starts(results))
    return [picture, Text(reading, "measured")]


def frontier_places(results: Results) -> pd.DataFrame:
    """Return one row per start, method and learning rate that has both figures, with columns as in `tables.frontier_table`.

    Rows with the same `line` are joined by a line; `config` identifies the runs.
    """
    rows: list[dict[str, Any]] = []
    for start in results.layout.starts:
        for method in results.methods:
            rates = results.layout.rates(start, method)
            where = f", {start} start" if len(results.layout.starts) > 1 else ""
            for rate, config in rates.items():
                means = {name: results.mean(config, figure) for name, figure in AXES.items()}
                if all(mean.seeds for mean in means.values()):
                    label = f"{method}{f' {rate:g}' if len(rates) > 1 else ''}{where}"
                    place = {"label": label, "adapter": method, "line": f"{method}{where}", "config": config}
                    rows.append({**place, **means})
    return pd.DataFrame(rows)


def describe_family(results: Results) -> str:
    """Say which method learned most, which forgot least of those that learned as much as a reference, and what has one seed.

    All runs are from the suite's own start. A method is compared with its reference over the seeds that both have.
    """
    own = {method: results.layout.own(results.layout.starts[0], method) for method in results.methods}
    learned = {method: results.mean(config, AXES["learned"]) for method, config in own.items()}
    known = {method: mean for method, mean in learned.items() if mean.seeds}
    if not known:
        return "No method has finished runs at the suite's own settings."
    most = max(known, key=lambda method: known[method].mean)
    sentences = [f"Learned most: {most}, {format_interval(known[most])} %."]
    references = dict.fromkeys(reference for _, reference in results.plan.study.contrasts if reference in known)
    sentences += [_describe_least(results, own, reference) for reference in references]
    single = sum(mean.seeds == 1 for mean in known.values())
    sentences.append(
        f"{format_count(single, 'method')} of {len(known)} ran with one seed, which establishes no difference."
    )
    return " ".join(sentences)


def _describe_least(results: Results, own: Mapping[str, Config], reference: str) -> str:
    ahead = {
        method: results.paired(config, own[reference], AXES["forgot"])
        for method, config in own.items()
        if method != reference and results.paired(config, own[reference], AXES["learned"]).mean >= 0
    }
    ahead = {method: change for method, change in ahead.items() if change.seeds}
    if not ahead:
        return f"No other method learned at least as much as {reference} over the seeds that both have."
    least = min(ahead, key=lambda method: ahead[method].mean)
    change = format_interval(ahead[least], format_points)
    return (
        f"Of the {len(ahead)} that learned at least as much as {reference} over the seeds that both have, {least} forgot "
        f"least: {change} points against {reference}."
    )


def _describe_starts(results: Results) -> Iterator[str]:
    """Yield a sentence per start: each method's learning and forgetting at the rate where it learned most."""
    for start in results.layout.starts:
        methods = [method for method in results.methods if method not in results.controls]
        sentences = [sentence for method in methods if (sentence := _at_best_rate(results, start, method))]
        if sentences:
            yield f"{f'From the {start} start' if start else 'Here'}: {'; '.join(sentences)}."


def _at_best_rate(results: Results, start: str, method: str) -> str:
    rates = results.layout.rates(start, method)
    means = {rate: mean.mean for rate, config in rates.items() if (mean := results.mean(config, AXES["learned"])).seeds}
    if not means:
        return ""
    rate = max(means, key=lambda each: means[each])
    learned, lost = (results.mean(rates[rate], name) for name in AXES.values())
    forgot = f", forgot {format_interval(lost, format_points)} points" if lost.seeds else ""
    return f"{method} {_name_rate(rate, list(means))} learned {format_interval(learned)} %{forgot}"


def _name_rate(rate: float, tried: Sequence[float]) -> str:
    if len(tried) == 1:
        return f"(one lr, {rate:g})"
    return f"(lr {rate:g}{name_edge(rate, tried)}, where it learned most of {len(tried)})"


def _joint_levels(results: Results) -> Iterator[tuple[str, float]]:
    """Yield each method with its average accuracy after one stage over all tasks, a share."""
    for method in results.plan.study.entries:
        joint = results.mean(Config(results.layout.own_suite, method, JOINT), "average_accuracy")
        if joint.seeds:
            yield method, joint.mean
