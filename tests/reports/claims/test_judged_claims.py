"""Claims judged on runs: verdicts and intervals by hand, what runs cannot test, and what is written about it."""

from __future__ import annotations

import io
import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from harness.errors import ConfigError
from harness.rundir.files import write_json
from harness.stats.claim_verdicts import (
    CONTRADICTED,
    EQUIVALENT,
    NO_VERDICT,
    NOT_RESOLVED,
    NOT_TESTABLE,
    NOT_TESTED,
    SUPPORTED,
)
from harness.stats.two_way import two_way_interval
from reports.claims.claim_file import claim_metrics, metrics_of_tasks, read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import EXPLORATORY, Verdict, judge_by_setting, judge_claims
from reports.claims.render_verdicts import explain_verdict, format_reported, verdicts_grid, write_verdicts
from reports.compare.comparison import Comparison
from reports.data.calibration import ProfileFigure
from reports.data.frames import load_frames
from reports.data.learning_curves import CurveFigure
from reports.data.methods import find_methods, methods_of
from reports.terminal.report_commands import show_by_setting
from tests.support.reports.claim_factory import write_claims
from tests.support.reports.run_factory import curve_points, write_run

START = [0.5, 0.1, 0.6]


def write(tmp_path: Path, adapter: str, learned: list[float], kept: list[float], **options: Any) -> None:
    for seed, (one, other) in enumerate(zip(learned, kept, strict=True)):
        write_run(tmp_path, adapter, seed, [START, [one, 0.2, 0.5], [other, 0.7, 0.5]], items=100, **options)


def rows_of(tmp_path: Path, *changes: dict[str, Any], **keys: Any) -> list[Verdict]:
    return judge_claims([read_claims(write_claims(tmp_path, *changes, **keys))], Evidence(find_methods([tmp_path])))


def judged(tmp_path: Path, *changes: dict[str, Any], **keys: Any) -> list[tuple[str, str]]:
    return [(each.place.task or each.place.start, each.verdict) for each in rows_of(tmp_path, *changes, **keys)]


def test_verdicts_on_runs(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.31, 0.3])
    large = {"name": "large", "smallest_effect": 50}
    every = {"name": "every", "scope": {"tasks": ["each"]}}
    none = {"name": "none", "expression": "metric(gkd, learned) > 0"}
    primary = ["learns", "large", "none"]
    assert judged(tmp_path, {}, large, every, none, primary=primary) == [
        ("tiny_arithmetic", SUPPORTED),
        ("tiny_arithmetic", CONTRADICTED),
        ("tiny_arithmetic", NOT_TESTABLE),
        ("tiny_arithmetic", EXPLORATORY),
        ("tiny_weather", EXPLORATORY),
    ]


def test_a_look_before_the_last_takes_a_smaller_p_and_no_look_gives_no_verdict(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.7, 0.6, 0.65], [0.3, 0.31, 0.3])
    file = read_claims(write_claims(tmp_path, {"smallest_effect": 0}))
    plans = [(), (3,), (3, 6), (5,), (4, 6), (2,)]
    rows = {looks: judge_claims([file], Evidence(find_methods([tmp_path])), looks)[0] for looks in plans}
    assert 0.0031 < rows[()].p < 0.05
    assert [row.verdict for row in rows.values()] == [SUPPORTED, SUPPORTED, NOT_RESOLVED, *3 * [NO_VERDICT]]
    assert re.search(r"3 of 6 planned seeds .*\b0\.31 %", rows[3, 6].reason)
    assert re.fullmatch(r"no verdict: .*\b3 seeds; .*\b5", explain_verdict(rows[5,]))
    assert "the last was at 2" in rows[2,].reason
    assert all(row.primary and row.effect == rows[()].effect for row in rows.values())


def test_the_sequence_ends_with_the_first_claim_that_shows_no_difference(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.32, 0.28])
    later = {"name": "later", "smallest_effect": 10}
    ends = {"name": "ends", "expression": "metric(aopd, final) > metric(opd, final)", "smallest_effect": 0}
    unresolved, learned = rows_of(tmp_path, ends, later, primary=["ends", "later"])
    assert (unresolved.verdict, learned.verdict) == (NOT_RESOLVED, NOT_TESTED)
    assert re.fullmatch(r"not tested: .*\bends with ends, .*not resolved", explain_verdict(learned))
    assert [row.verdict for row in rows_of(tmp_path, later, ends, primary=["later", "ends"])] == [
        SUPPORTED,
        NOT_RESOLVED,
    ]
    (alike, closed) = rows_of(tmp_path, {**ends, "margin": 30}, later, primary=["ends", "later"])
    assert (alike.verdict, closed.verdict) == (EQUIVALENT, NOT_TESTED)
    assert explain_verdict(alike).startswith("equivalent within 30 points (p ")


def test_the_interval_is_for_another_seed_and_other_items_with_its_two_parts(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3] * 3)
    write(tmp_path, "aopd", [0.5, 0.7, 0.6], [0.3] * 3)
    (row,) = rows_of(tmp_path, {})
    methods = {method.name: method for method in find_methods([tmp_path])}
    learned = metrics_of_tasks()["learned"]
    change = methods["aopd"].estimate(learned, "tiny_arithmetic") - methods["opd"].estimate(learned, "tiny_arithmetic")
    assert row.effect == two_way_interval(change)
    assert change.items
    assert row.seeds.mean == row.items.mean == pytest.approx(row.effect.mean)
    assert row.effect.errors[0].error >= row.seeds.errors[0].error
    assert row.items.half_width > 0
    header = list(verdicts_grid([row]).header)
    assert {"effect [95 %]", "over seeds", "over items"} <= set(header)


def test_a_claim_is_judged_under_its_profile(tmp_path: Path):
    sampled = {"opd": 0.6, "aopd": 0.4}
    for adapter, seed in product(sampled, range(3)):
        greedy = 0.5 + 0.3 * (adapter == "aopd") + 0.01 * seed * (adapter == "aopd")
        scores = {name: [START, [one, 0.2, 0.5], [0.3, 0.7, 0.5]] for name, one in
                  (("", greedy), ("paper", sampled[adapter] - 0.01 * seed * (adapter == "aopd")))}  # fmt: skip
        write_run(tmp_path, adapter, seed, scores.pop(""), items=100, further=scores)
    found = [
        rows_of(tmp_path, {"smallest_effect": 0}, {"name": "own", "profile": "greedy"}, profile=profile)
        for profile in ("paper", "", "policy")
    ]
    assert [(row.profile, row.verdict) for row, _ in found] == [
        ("paper", CONTRADICTED),
        ("greedy", SUPPORTED),
        ("policy", NOT_TESTABLE),
    ]
    assert re.fullmatch("aopd .*not evaluated .*profile policy", found[2][0].reason)
    assert {row.profile for _, row in found} == {"greedy"}
    file = read_claims(write_claims(tmp_path, {"smallest_effect": 0}))
    (row,) = judge_claims([file], Evidence(find_methods([tmp_path], profile="paper")))
    assert (row.profile, row.verdict, row.effect) == ("greedy", SUPPORTED, found[1][0].effect)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expression": "metric(gkd, learned) > 0"}, "no runs of gkd from the weak start"),
        ({"scope": {"tasks": ["first"], "rate": "best"}}, "aopd ran at one learning rate"),
        (
            {
                "expression": "metric(aopd, probe_change) > metric(opd, probe_change)",
                "at": "equal_learning",
                "scope": {"stage": 1},
            },
            "no learning curves",
        ),
    ],
)
def test_what_the_runs_cannot_test_is_called_not_testable(tmp_path: Path, change: dict[str, Any], reason: str):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.31, 0.3])
    (row,) = rows_of(tmp_path, change)
    assert (row.verdict, row.reason) == (NOT_TESTABLE, reason)
    (row,) = rows_of(tmp_path, change, primary=[])
    assert explain_verdict(row) == f"exploratory, not testable: {reason}"


def points(learned: list[float], kept: list[float], items: int = 20) -> list[dict[str, Any]]:
    """The learning curve of the first stage: its own task and a probe, whose first items are right."""
    found = []
    for task, scores in (("tiny_arithmetic", learned), ("tiny_long_sums", kept)):
        for step, score in enumerate(scores):
            right = [float(place < round(score * items)) for place in range(items)]
            clusters = [str(place) for place in range(items)]
            found.append({"step": step, "task": task, "score": score, "items": right, "clusters": clusters})
    return found


KEEPS = {
    "name": "keeps",
    "text": "AOPD keeps more of the probes",
    "expression": "metric(aopd, probe_change) > metric(opd, probe_change)",
    "smallest_effect": 0,
    "at": "equal_learning",
    "scope": {"stage": 1},
}


def write_curves(tmp_path: Path, adapter: str, learned: list[float], kept: list[float], **options: Any) -> None:
    curve = points(learned, kept)
    for seed in range(3):
        write_run(tmp_path, adapter, seed, curves=lambda stage: curve if stage == 1 else [], **options)


def test_what_is_kept_is_judged_at_equal_learning(tmp_path: Path):
    """Both learn 0.2 a step from 0.2 to 1; opd loses 0.1 of the probe a step, aopd 0.05.

    Compared are the lower 90 % of the common range, 0.2 to 0.92, at which 1.8 steps are done on average: 0.09 more for aopd.
    """
    learned = [0.2, 0.4, 0.6, 0.8, 1.0]
    write_curves(tmp_path, "opd", learned, [0.8, 0.7, 0.6, 0.5, 0.4])
    write_curves(tmp_path, "aopd", learned, [0.8, 0.75, 0.7, 0.65, 0.6])
    (row,) = rows_of(tmp_path, KEEPS)
    assert row.effect.mean == pytest.approx(0.09)
    assert row.items.mean == pytest.approx(0.09)
    assert row.verdict in (SUPPORTED, NOT_RESOLVED)
    assert row.primary


def test_a_mean_over_stages_names_those_that_it_leaves_out(tmp_path: Path):
    """In the second stage OPD learns nothing, so only the first one can be compared."""
    first = {"opd": [0.8, 0.7, 0.6, 0.5, 0.4], "aopd": [0.8, 0.75, 0.7, 0.65, 0.6]}
    for adapter, seed in product(("opd", "aopd"), range(3)):
        own = [0.1] * 5 if adapter == "opd" else [0.2, 0.4, 0.6, 0.8, 1.0]
        second = curve_points({"tiny_weather": own, "tiny_long_sums": [0.8] * 5})
        curves = [points([0.2, 0.4, 0.6, 0.8, 1.0], first[adapter]), second]
        write_run(tmp_path, adapter, seed, curves=lambda stage, each=curves: each[stage - 1])
    (row,) = rows_of(tmp_path, KEEPS | {"scope": {}})
    assert row.effect.mean == pytest.approx(0.09)
    assert "without stage 2" in row.compared


@pytest.mark.parametrize("kind", ["from another run's stage", "after a stage with an adapter of its own"])
def test_a_claim_on_probes_counts_those_that_nothing_trains_in_both_kinds_of_branches(tmp_path: Path, kind: str):
    """Both learn alike; opd loses 0.1 of the probe a step and aopd 0.05, of what was trained before 0.1 and nothing.

    Compared are 0.2 to 0.74, at which 1.35 steps are done on average: 0.0675 more of the probe, 0.135 more of the other task.
    """
    first, second, probe = "tiny_arithmetic", "tiny_weather", "tiny_long_sums"
    falls = {"opd": [0.8, 0.7, 0.6, 0.5], "aopd": [0.8, 0.75, 0.7, 0.65]}
    before = {"opd": [0.8, 0.7, 0.6, 0.5], "aopd": [0.8] * 4}
    for adapter, seed in product(falls, range(3)):
        curve = curve_points({second: [0.2, 0.4, 0.6, 0.8], first: before[adapter], probe: falls[adapter]})
        if kind.startswith("from"):
            origin = {"trained": [{"task": first, "items": None}]}
            tasks: dict[str, Any] = {"stages": (second,), "probes": (first, probe), "config": {"origin": origin}}
            scores = [[0.2, 0.8, 0.8], [0.8, 0.6, 0.6]]
            write_run(tmp_path, adapter, seed, scores, **tasks, curves=lambda _, own=curve: own)
        else:
            run = write_run(tmp_path, adapter, seed, curves=lambda stage, own=curve: own if stage == 2 else [])
            found = json.loads((run / "manifest.json").read_text())
            found["stages"][0]["adapter"] = "sft"
            write_json(run / "manifest.json", found)
    of_branch = KEEPS | {"scope": {"stage": "branch"}}
    kept = {"name": "kept", "expression": "metric(aopd, kept) > metric(opd, kept)"}
    probes, both = rows_of(tmp_path, of_branch, of_branch | kept)
    assert probes.effect.mean == pytest.approx(0.0675)
    assert both.effect.mean == pytest.approx((0.0675 + 0.135) / 2)


def test_a_look_at_which_few_seeds_have_an_effect_says_so_and_names_the_next(tmp_path: Path):
    """Two of three seeds have common learning."""
    kept = {"opd": [0.8, 0.7, 0.6, 0.5, 0.4], "aopd": [0.8, 0.75, 0.7, 0.65, 0.6]}
    for adapter, seed in product(kept, range(3)):
        learned = [0.0, 0.02, 0.04, 0.06, 0.1] if (adapter, seed) == ("opd", 2) else [0.2, 0.4, 0.6, 0.8, 1.0]
        curve = points(learned, kept[adapter])
        write_run(tmp_path, adapter, seed, curves=lambda stage, own=curve: own if stage == 1 else [])
    (row,) = judge_claims([read_claims(write_claims(tmp_path, KEEPS))], Evidence(find_methods([tmp_path])), (3, 5))
    assert (row.verdict, row.looked, row.effect.seeds) == (NO_VERDICT, 3, 2)
    assert re.search("fewer than 3 seeds .*next look is at 5", row.reason)


def test_probes_without_a_curve_are_named(tmp_path: Path):
    probes, scores = ("tiny_long_sums", "by_likelihood"), [[0.5, 0.1, 0.6, 0.5]] * 3
    learned, kept = [0.2, 0.4, 0.6, 0.8, 1.0], [0.8, 0.7, 0.6, 0.5, 0.4]
    for adapter in ("opd", "aopd"):
        write_curves(tmp_path, adapter, learned, kept, scores=scores, probes=probes)
    (row,) = rows_of(tmp_path, KEEPS)
    assert row.compared.endswith("without by_likelihood")
    notes = Comparison(find_methods([tmp_path])).notes()
    assert [note for note in notes if "by_likelihood" in note and "tiny_long_sums" not in note]


def test_only_finished_runs_count_at_equal_learning(tmp_path: Path):
    for seed in range(4):
        left: dict[str, Any] = {"evaluated": 7} if seed == 3 else {}  # the last seed is in its second stage
        for adapter, kept in (("opd", [0.8, 0.7, 0.6, 0.5, 0.4]), ("aopd", [0.8, 0.75, 0.7, 0.65, 0.6])):
            curve = points([0.2, 0.4, 0.6, 0.8, 1.0], kept)
            write_run(tmp_path, adapter, seed, curves=lambda stage, own=curve: own if stage == 1 else [], **left)
    for scope in ({"stage": 1}, {"stage": None}):
        (row,) = rows_of(tmp_path, KEEPS | {"scope": scope})
        assert (row.effect.seeds, row.looked, row.effect.mean) == (3, 3, pytest.approx(0.09))
    for run in tmp_path.glob("tiny/opd/default/seed*"):
        found = json.loads((run / "manifest.json").read_text())
        write_json(run / "manifest.json", found | {"finished": None})
    (row,) = rows_of(tmp_path, KEEPS)
    assert (row.verdict, row.effect.seeds, row.looked) == (NOT_TESTABLE, 0, 0)


def test_without_common_learning_retention_is_not_testable(tmp_path: Path):
    write_curves(tmp_path, "opd", [0.1, 0.2, 0.25, 0.3], [0.8, 0.7, 0.6, 0.5])
    write_curves(tmp_path, "aopd", [0.4, 0.6, 0.8, 1.0], [0.8, 0.75, 0.7, 0.65])
    (row,) = rows_of(tmp_path, KEEPS)
    assert (row.verdict, row.reason) == (NOT_TESTABLE, "no common learning")


def test_curves_answer_for_the_first_profile_alone(tmp_path: Path):
    further = {"paper": [START, START, START]}
    for adapter in ("opd", "aopd"):
        write_curves(tmp_path, adapter, [0.2, 0.5, 0.9], [0.8, 0.7, 0.6], further=further)
    (row,) = rows_of(tmp_path, KEEPS, profile="paper")
    assert re.fullmatch("learning curves .*profile greedy", row.reason)


def test_methods_that_start_from_different_weights_are_not_compared_by_seed(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.31, 0.3], weights="elsewhere")
    (row,) = rows_of(tmp_path, {})
    assert row.verdict == NOT_TESTABLE
    assert re.fullmatch("aopd and opd .*different weights .*seed 0", row.reason)


def test_two_seeds_test_nothing(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5], [0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81], [0.3, 0.31])
    (row,) = rows_of(tmp_path, {})
    assert (row.verdict, row.reason, row.effect.seeds) == (NOT_TESTABLE, "fewer than 3 seeds", 2)


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [
        ({"start": "strang"}, r"claim learns: start .*'strang', .*\bweak\b"),
        (
            {"tasks": ["tiny_wether"]},
            r"claim learns: scope\.tasks .*'tiny_wether', .*; .*\btiny_arithmetic, ",
        ),
        ({"stage": 99}, r"claim learns: scope\.stage is 99, .*stages 1 to 2\b"),
    ],
)
def test_a_scope_that_no_run_has_is_refused_with_what_they_have(tmp_path: Path, scope: dict[str, Any], sentence: str):
    write(tmp_path, "opd", [0.5], [0.3])
    write(tmp_path, "aopd", [0.5], [0.3])
    with pytest.raises(ConfigError, match=sentence):
        judged(tmp_path, {"scope": {"tasks": ["first"], **scope}})
    weak = {"start": "weak"}
    with pytest.raises(ConfigError, match="start names 'strang'"):
        judged(
            tmp_path, {"expression": "metric(aopd, learned, start=strang) > 0", "scope": {**weak, "tasks": ["first"]}}
        )
    assert judged(tmp_path, {"scope": {"tasks": ["tiny_long_sums"]}, "expression": "metric(aopd, final) > 0"})


def test_each_start_is_judged_and_pairs_of_starts_are_compared(tmp_path: Path):
    for start, gain in (("weak", 0.3), ("strong", 0.1)):
        write(tmp_path / start, "opd", [0.5, 0.5, 0.5], [0.3] * 3, start=start)
        write(tmp_path / start, "aopd", [0.5 + gain, 0.51 + gain, 0.49 + gain], [0.3] * 3, start=start)
    expression = "metric(aopd, learned, start=one) - metric(aopd, learned, start=other) > 0"
    reports = {"weak": 8.0, "strong": 4.5}
    pairs = {
        "name": "pairs",
        "expression": expression,
        "scope": {"start": "pairs", "tasks": ["first"]},
        "reported": reports,
    }
    file = write_claims(tmp_path, {"reported": reports, "reported_in": "math"}, pairs)
    found = judge_claims([read_claims(file)], Evidence(find_methods([tmp_path / "weak", tmp_path / "strong"])))
    assert [(v.place.start, v.place.other) for v in found] == [("weak", ""), ("strong", ""), ("weak", "strong")]
    assert [format_reported(v.entry, v.place) for v in found] == [
        "+8.00 points, math",
        "+4.50 points, math",
        "+3.50 points",
    ]
    assert found[2].effect.mean == pytest.approx(0.2)
    assert [v.primary for v in found] == [True, False, False]
    again = judge_claims([read_claims(file)], Evidence(find_methods([tmp_path / "weak"])), primary=False)
    assert [(v.verdict, v.effect.mean) for v in again] == [(EXPLORATORY, pytest.approx(0.3))]
    strong = find_methods([tmp_path / "strong"])
    first, *others = judge_claims([read_claims(file)], Evidence(strong, planned_starts=("weak", "strong")))
    assert (first.place.start, first.verdict) == ("weak", NOT_TESTABLE), "the study's first start has no runs yet"
    assert not any(each.primary for each in others)


def test_metrics_of_a_run_by_hand_and_up_to_a_stage(tmp_path: Path):
    write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.3, 0.9, 0.4]])
    (method,) = find_methods([tmp_path], least=1)

    def value(name: str, task: str = "", stage: int | None = None) -> float:
        figure = claim_metrics()[name]
        assert not isinstance(figure, ProfileFigure | CurveFigure)
        return method.estimate(figure, task, stage).by_seed.get(0, math.nan)

    expected = {"before": 0.5, "learned": 0.8, "gained": 0.3, "final": 0.3, "retained": -0.5, "changed": -0.2}
    assert set(expected) | {"forgotten"} == set(metrics_of_tasks())
    for name, by_hand in expected.items():
        assert value(name, "tiny_arithmetic") == pytest.approx(by_hand)
    assert value("final", "tiny_arithmetic", stage=1) == pytest.approx(0.8)
    assert math.isnan(value("learned", "tiny_weather", stage=1))
    assert value("learning_accuracy") == pytest.approx(0.85)
    assert value("learning_accuracy", stage=1) == pytest.approx(0.8)
    assert value("forgetting_chaudhry") == pytest.approx(0.5)
    assert value("entropy") == pytest.approx(0.85)


def test_the_reason_why_a_claim_is_not_testable_is_in_table_and_files(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3] * 3)
    write(tmp_path, "aopd", [0.5, 0.7, 0.6], [0.3] * 3)
    found = rows_of(tmp_path, {})
    half = f"{100 * found[0].effect.half_width:.1f}"
    assert explain_verdict(found[0]) == f"not resolved (half-width {half} points)"
    grid = verdicts_grid(found)
    row = dict(zip(grid.header, grid.rows[0], strict=True))
    assert (row["claim"], row["smallest"]) == ("AOPD learns tiny_arithmetic, weak start", "+5.0")
    assert "reported" not in row
    written = write_verdicts(found, [read_claims(tmp_path / "claims.yaml")], tmp_path / "out")
    assert "A trial: nowhere" in written[0].read_text(encoding="utf-8")
    assert pd.read_csv(written[1]).loc[0, "verdict"] == NOT_RESOLVED


def test_a_report_s_claims_are_judged_for_each_suite_and_order_apart(tmp_path: Path):
    runs = tmp_path / "runs"
    for suite, adapter, seed in product(("tiny", "other"), ("opd", "aopd"), range(3)):
        write_run(runs, adapter, seed, suite=suite)
    files, text = [read_claims("aopd")], io.StringIO()
    for folder, name in ((runs, "several"), (runs / "tiny", "one")):
        judged = judge_by_setting(files, methods_of(load_frames([folder])))
        show_by_setting(Console(file=text, width=150), files, judged, tmp_path / name)
    assert ["other, default" in text.getvalue(), "tiny, default" in text.getvalue()] == [True, True]
    several, one = (
        sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob(f"{name}/**/*.csv")) for name in ("several", "one")
    )
    assert several == ["several/claims_other_default/claims.csv", "several/claims_tiny_default/claims.csv"]
    assert one == ["one/claims.csv"]
    other, tiny, alone = (pd.read_csv(tmp_path / name) for name in (*several, *one))
    assert [bool(table["primary"].any()) for table in (other, tiny, alone)] == [True, False, True], "tested once"
    measured = ["claim", "effect", "low", "high", "p", "seeds"]
    both = [table.sort_values("claim", ignore_index=True)[measured] for table in (tiny, alone)]
    pd.testing.assert_frame_equal(both[0], both[1])


def test_primary_claims_are_tested_where_all_their_methods_ran_in_the_suites_own_order_first(tmp_path: Path):
    """Suite `a` has OPD alone. In suite `b`, the order `backwards` sorts before the suite's own."""
    for seed in range(3):
        write_run(tmp_path, "opd", seed, suite="a")
        for adapter, order in product(("opd", "aopd"), ("backwards", "default")):
            write_run(tmp_path, adapter, seed, suite="b", order=order)
    judged = judge_by_setting([read_claims("aopd")], methods_of(load_frames([tmp_path])))
    tested = {(each.suite, each.order): any(row.primary for row in each.verdicts) for each in judged}
    assert tested == {("a", "default"): False, ("b", "backwards"): False, ("b", "default"): True}
    assert judge_by_setting([read_claims("aopd")], []) == []


def test_what_only_one_order_lacks_is_the_reason_of_its_row(tmp_path: Path):
    """Joint training has one stage, so a claim on the second one is judged on the suite's own order alone."""
    for adapter, seed in product(("opd", "aopd"), range(3)):
        write_run(tmp_path, adapter, seed)
        write_run(tmp_path, adapter, seed, [[0.5] * 3, [0.8] * 3], joint=True, order="joint")
    claims = write_claims(tmp_path, {"scope": {"stage": 2, "tasks": ["first"]}})
    found = judge_by_setting([read_claims(claims)], methods_of(load_frames([tmp_path])))
    (joint,), (own,) = (each.verdicts for each in sorted(found, key=lambda each: each.order == "default"))
    assert re.match(r"scope\.stage is 2, .*stages 1 to 1\b", joint.reason)
    assert (joint.effect.seeds, own.effect.seeds, own.reason) == (0, 3, "")


def test_a_claim_on_probes_is_not_judged_on_other_tasks_where_there_are_none(tmp_path: Path):
    points = curve_points({"tiny_weather": [0.1, 0.5, 0.9], "tiny_arithmetic": [0.8, 0.7, 0.5]})
    for adapter, seed in product(("opd", "aopd"), range(3)):
        scores = [[0.5, 0.1], [0.8, 0.2], [0.3, 0.9]]
        write_run(tmp_path, adapter, seed, scores, probes=(), curves=lambda stage: points if stage == 2 else [])
    probes = {
        "expression": "metric(aopd, probe_change) > metric(opd, probe_change)",
        "at": "equal_learning",
        "scope": {},
    }
    (row,) = rows_of(tmp_path, probes)
    assert (row.verdict, row.effect.seeds) == (NOT_TESTABLE, 0)
    assert "no probes" in row.reason


def test_only_a_difference_of_one_metric_has_the_bounds_of_that_metric(tmp_path: Path):
    write(tmp_path, "opd", [0.0, 0.0, 1.0], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [1.0, 0.0, 0.0], [0.3, 0.3, 0.3])
    plain, scaled, total = rows_of(
        tmp_path,
        {"name": "plain"},
        {"name": "scaled", "expression": "100 * metric(aopd, learned) > 100 * metric(opd, learned)"},
        {"name": "sum", "expression": "metric(aopd, learned) + metric(opd, learned) + metric(aopd, final) > 0"},
        primary=[],
    )
    assert (plain.effect.low, plain.effect.high) == (-1, 1)
    assert scaled.effect.high > 200
    assert total.effect.low <= total.effect.mean <= total.effect.high


def test_a_primary_claim_on_two_starts_stays_in_the_sequence_where_there_is_one(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.31, 0.3])
    gains = (f"metric(aopd, learned, start={one}) - metric(opd, learned, start={one})" for one in ("one", "other"))
    pair = {"name": "pair", "expression": " > ".join(gains), "scope": {"start": "pairs", "tasks": ["first"]}}
    rows = rows_of(tmp_path, pair, {}, primary=["pair", "learns"])
    assert [(row.entry.name, row.verdict) for row in rows] == [("pair", NOT_TESTABLE), ("learns", SUPPORTED)]
    assert "weak" in rows[0].reason
