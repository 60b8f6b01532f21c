"""What holds under each way of answering: a study's differences by evaluation profile, calibration, ends below the start.

A method can gain under greedy decoding and lose where answers are sampled, so a difference stands next to the same one under
the other profiles, and a change of sign is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.stats.continual import ACCURACY, LEARNING, START
from harness.stats.intervals import Interval, resolved, reverses
from harness.stats.looks import FEWEST_SEEDS
from harness.stats.two_way import two_way_interval
from reports.compare.final_scores import describe_against_start
from reports.data.calibration import calibration_table
from reports.data.matched_pairs import difference
from reports.data.methods import Method, over_tasks, tasks_of_all
from reports.document.blocks import Block, Bullets, Grid, Text
from reports.formatting import format_interval, format_points
from reports.report.sections.training_section import calibration_grid
from reports.study.study_results import Results

FIGURES = (LEARNING, ACCURACY)
BY_PROFILE = (
    "Differences in points, with 95 % intervals for another seed and other items, under each evaluation profile. Bold: "
    "the interval excludes zero. Learning: right after a task's own stage. Final: after the last stage."
)
CALIBRATED = (
    "Calibration is the score at temperature 1 minus the greedy score of the same weights, right after each task's own stage. "
    "Below zero, sampled answers are worse than the most probable ones; a high entropy then is not exploration that helps."
)


def profile_blocks(results: Results) -> list[Block]:
    """Return differences by profile with the changes of sign, ends against starts, and calibration; empty with one profile."""
    pairs = dict(_pairs(results))
    profiles = list(dict.fromkeys(name for methods in pairs.values() for name in _profiles(*methods)))
    if len(profiles) < 2:
        return []
    found = {label: _by_profile(*methods) for label, methods in pairs.items()}
    blocks: list[Block] = [Text(BY_PROFILE + _left_out(results), "note"), _differences(found, profiles)]
    reversals = [sentence for label, each in found.items() for sentence in _reversals(label, each)]
    blocks.append(
        Bullets(reversals or ["No difference changes its sign between profiles with an interval that excludes zero."])
    )
    blocks.append(_ends(results, profiles))
    calibrated = calibration_table(_renamed(method, label) for label, method in _methods(results))
    return [
        *blocks,
        *(
            [Text(CALIBRATED, "note"), replace(calibration_grid(calibrated), title="Calibration")]
            if len(calibrated)
            else []
        ),
    ]


def describe_learned_and_ended(results: Results, profile: str) -> list[str]:
    """Return for each start what the study's entries learned and how they ended against their references, under a profile.

    The profile is empty where the suite names none. Profiles under which the sign of the difference in learning reverses are
    named.
    """
    found: list[str] = []
    for start in results.layout.starts:
        for entry, reference in results.plan.study.contrasts:
            methods = [results.method(results.layout.own(start, name)) for name in (entry, reference)]
            if methods[0] is None or methods[1] is None:
                continue
            shown = [method.under(profile) for method in methods if method is not None]
            if shown[0] is None or shown[1] is None:
                continue
            learned, ended = (difference(shown[0], shown[1], figure) for figure in FIGURES)
            by_profile = _by_profile(methods[0], methods[1])
            turned = [
                f"; under {name} decoding it learned {format_interval(other, format_points)}"
                for name, (other, _) in by_profile.items()
                if reverses(other, by_profile[shown[0].profile][0], FEWEST_SEEDS)
            ]
            found.append(
                f"{_label(results, f'{entry} − {reference}', start)}{f', {profile} decoding' * bool(profile)}: learned "
                f"{format_interval(learned, format_points)} and ended {format_interval(ended, format_points)} points"
                f"{''.join(turned)}."
            )
    return found


def describe_ends_below(results: Results) -> list[str]:
    """Return a sentence for each method that ends below its start or learned nothing, at the suite's own settings."""
    named = [_renamed(method, label) for label, method in _methods(results)]
    under = f"Under {results.profile} decoding " if results.profile else ""
    return [f"{under}{sentence}" for sentence in describe_against_start(named)]


def _methods(results: Results) -> Iterator[tuple[str, Method]]:
    """Yield every entry that trains with its runs at the suite's own settings, from each start."""
    entries = dict.fromkeys(point.spec.entry for point in results.plan.points)
    for start in results.layout.starts:
        for entry in entries:
            method = results.method(results.layout.own(start, entry))
            if method is not None and not method.control:
                yield _label(results, entry, start), method


def _pairs(results: Results) -> Iterator[tuple[str, tuple[Method, Method]]]:
    """Yield every entry against its reference, at the suite's own settings, from each start."""
    for start in results.layout.starts:
        for entry, reference in results.layout.all_contrasts:
            methods = [results.method(results.layout.own(start, name)) for name in (entry, reference)]
            if methods[0] is not None and methods[1] is not None:
                yield _label(results, f"{entry} − {reference}", start), (methods[0], methods[1])


def _label(results: Results, name: str, start: str) -> str:
    return f"{name}, {start} start" if start and len(results.layout.starts) > 1 else name


def _renamed(method: Method, name: str) -> Method:
    return Method(name, method.frames)


def _profiles(*methods: Method) -> list[str]:
    """Return the profiles that all methods were evaluated under."""
    names = methods[0].first.manifest.profile_names
    return [name for name in names if all(method.under(name) is not None for method in methods)]


def _by_profile(one: Method, other: Method) -> dict[str, list[Interval]]:
    """Return by profile the differences one minus other of FIGURES, over the tasks that all profiles evaluate."""
    tasks = _shared_tasks(one, other)
    found: dict[str, list[Interval]] = {}
    for profile in _profiles(one, other):
        sides = [method for each in (one, other) if (method := each.under(profile)) is not None]
        found[profile] = [difference(sides[0], sides[1], over_tasks(figure, tasks)) for figure in FIGURES]
    return found


def _shared_tasks(*methods: Method) -> list[str]:
    """Return the tasks that methods have under all of their common profiles."""
    profiles = _profiles(*methods)
    return tasks_of_all(shown for each in methods for name in profiles if (shown := each.under(name)) is not None)


def _left_out(results: Results) -> str:
    """Name the trained tasks that some profile does not evaluate; empty where there are none."""
    methods = [method for _, method in _methods(results)]
    left = dict.fromkeys(task for each in methods for task in each.stage_of if task not in _shared_tasks(each))
    return f" Left out, because not all profiles evaluate them: {', '.join(left)}." if left else ""


def _differences(found: Mapping[str, Mapping[str, list[Interval]]], profiles: list[str]) -> Grid:
    cells = [
        [each.get(profile, [None, None])[place] for place in range(len(FIGURES)) for profile in profiles]
        for each in found.values()
    ]
    header = ["methods", *(f"{name}, {profile}" for name in ("learning", "final") for profile in profiles)]
    return _grid("Differences by profile", header, list(found), cells)


def _ends(results: Results, profiles: list[str]) -> Grid:
    """Return where each method ends relative to its start, under each profile."""
    labels, cells = [], []
    for label, method in _methods(results):
        shown, tasks = [method.under(profile) for profile in profiles], _shared_tasks(method)
        end, start = (over_tasks(figure, tasks) for figure in (ACCURACY, START))
        changes = [None if each is None else (each.estimate(end) - each.estimate(start)).finite() for each in shown]
        labels.append(label)
        cells.append([None if change is None else two_way_interval(change).of_difference("%") for change in changes])
    return _grid("Final minus start, points", ["method", *profiles], labels, cells)


def _grid(title: str, header: list[str], labels: list[str], cells: list[list[Interval | None]]) -> Grid:
    rows = [
        [label, *("–" if each is None or not each.seeds else format_interval(each, format_points) for each in row)]
        for label, row in zip(labels, cells, strict=True)
    ]
    strong = frozenset(
        (line, place + 1)
        for line, row in enumerate(cells)
        for place, each in enumerate(row)
        if each is not None and resolved(each, FEWEST_SEEDS)
    )
    return Grid(title, header, rows, strong)


def _reversals(label: str, by_profile: Mapping[str, list[Interval]]) -> Iterator[str]:
    """Yield a sentence for each difference whose sign another profile reverses, where either interval excludes zero."""
    (own, here), *others = by_profile.items()
    for place, name in enumerate(("learning", "final score")):
        for profile, there in others:
            one, other = here[place], there[place]
            if reverses(one, other, FEWEST_SEEDS):
                shown = [format_interval(each, format_points) for each in (one, other)]
                yield (
                    f"{label}: the sign of the difference in {name} reverses, {shown[0]} points under {own} decoding and "
                    f"{shown[1]} points under {profile}."
                )
