"""A study's verdicts: which runs they use, at which learning, after how many comparisons, and when there is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from harness.config.run_spec import RunSpec
from harness.rundir.files import CHECKSUM, CURVE, write_sealed
from harness.rundir.records.training_records import CurvePoint
from harness.rundir.schema import Manifest
from harness.rundir.stage_folder import stage_folder
from harness.rundir.store import MANIFEST
from harness.stats.claim_verdicts import CONTRADICTED, NO_VERDICT, NOT_RESOLVED, NOT_TESTABLE, NOT_TESTED, SUPPORTED
from harness.stats.intervals import t_interval
from harness.stats.significance import holm, p_value
from reports.claims.claim_file import read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import EXPLORATORY, judge_claims
from reports.claims.render_verdicts import (
    count_exploratory,
    describe_claim,
    format_reported,
    list_verdicts,
    verdicts_grid,
)
from reports.data.methods import find_methods
from reports.document.blocks import Grid
from reports.study.contrasts import find_contrasts
from reports.study.factors import describe_factor
from reports.study.matched_settings import FORGETTING, RETENTION, describe_matching, pair_settings, pairs_grid
from reports.study.study_plan import Config
from reports.study.study_results import Results, collect
from reports.study.study_verdicts import judge_study
from tests.support.reports.run_factory import curve_points, write_finished
from tests.support.reports.study_factory import constant, fill, study

NAN = float("nan")
AGAINST = ("aopd", "opd")
METHODS: dict[str, Any] = {"title": "Method", "entries": ["opd", "aopd"]}
RATES: dict[str, Any] = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4, 4.0e-4]}


def test_p_values_are_those_of_the_paired_t_test():
    values = pd.Series([0.1, 0.13, 0.19])
    peer: Any = stats.ttest_1samp(values, 0)
    assert p_value(t_interval(values)) == pytest.approx(peer.pvalue)


def test_holm_s_values_are_worked_by_hand():
    assert holm([0.04, 0.01, NAN, 0.03]) == pytest.approx([0.06, 0.03, NAN, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1]


def jitter(spec: RunSpec) -> float:
    return {"opd": 0.4, "aopd": 0.2}.get(spec.entry, 0.0) + 0.01 * spec.seed * (spec.entry == "aopd")


def made(folder: Path, learned: dict[str, list[float]], kept: dict[str, list[float]]) -> Results:
    """Return a study at one learning rate and the weak start, with scores by method and seed."""
    plan = study(folder, {"method": METHODS}, seeds=range(len(learned["opd"])))
    fill(plan, lambda s: constant(s, learned[s.entry][s.seed], kept[s.entry][s.seed]), jitter)
    return collect(plan)


def cell(results: Results, column: str) -> str:
    """The first claim's cell of a column."""
    grid: Grid = verdicts_grid(judge_study(results))
    return grid.rows[0][list(grid.header).index(column)]


def verdicts(results: Results) -> dict[str, str]:
    """The verdicts by the claim's name, at the weak start."""
    return {each.entry.name: each.verdict for each in judge_study(results) if each.place.start == "weak"}


def test_a_clear_gain_is_supported_and_the_rest_says_what_could_not_be_tested(tmp_path: Path):
    learned = {"opd": [0.5, 0.5, 0.5], "aopd": [0.8, 0.79, 0.81]}
    results = made(tmp_path, learned, {"opd": [0.2] * 3, "aopd": [0.75] * 3})
    found = verdicts(results)
    assert (found["learns"], found["ends"], found["retains"]) == (SUPPORTED, NOT_TESTABLE, NOT_TESTABLE)
    reasons = {each.entry.name: each.reason for each in judge_study(results)}
    assert reasons["ends"] == "aopd ran at one learning rate"
    assert re.match("no runs of aopd from the weak start .*checkpoint", reasons["retains"])
    assert found["entropy"] == EXPLORATORY


def test_a_claim_whose_planned_runs_are_missing_closes_the_sequence(tmp_path: Path):
    """The branch has all its runs. The other learning rate has none yet, then those of two seeds, then all."""
    plan = study(tmp_path, {"method": METHODS, "rate": RATES | {"values": [1.0e-4, 2.0e-4]}, "branch": BRANCH})
    branch = [spec for spec in plan.specs if spec.stages[0].shared]
    slow = [spec for spec in plan.specs if spec.suite.training.optimizer.lr == 1e-4]

    def write(specs: list[RunSpec]) -> None:
        for spec in specs:
            write_finished(spec, constant(spec, 0.5 + (0.3 + 0.01 * spec.seed) * (spec.entry == "aopd"), 0.4))

    write([spec for spec in plan.specs if spec not in slow])
    write_curves(branch)
    for more in ([], [spec for spec in slow if spec.seed < 2]):
        write(more)
        found = verdicts(collect(plan))
        assert (found["learns"], found["ends"], found["retains"]) == (SUPPORTED, NO_VERDICT, NOT_TESTED)
    write([spec for spec in slow if spec.seed == 2])
    found = verdicts(collect(plan))
    assert found["ends"] not in (NO_VERDICT, NOT_TESTABLE)


def test_the_page_opens_with_the_primary_claims_in_their_order(tmp_path: Path):
    learned = {"opd": [0.5, 0.5, 0.5], "aopd": [0.8, 0.79, 0.81]}
    found = judge_study(made(tmp_path, learned, learned))
    first, second, _ = list_verdicts(found)
    assert first.startswith(
        "Primary claim 1, paper decoding: AOPD learns more than OPD, weak start: supported, +30.0 ["
    )
    assert second.startswith(
        "Primary claim 2, paper decoding: AOPD ends higher than OPD, weak start, best learning rate: not testable:"
    )
    assert re.match(r"3 primary claims .*\b11 rows are exploratory", count_exploratory(found))


BRANCH: dict[str, Any] = {
    "title": "After arithmetic",
    "fixed": {
        "stages": [{"task": "tiny_arithmetic", "adapter": "opd", "training": {"steps": 120}}, "tiny_weather"],
        "orders": {},
        "evaluation.every": 10,
        "evaluation.curve_profile": "paper",
    },
}


def branched(folder: Path, **fixed: Any) -> Results:
    """Return a study whose branch has curves: both methods learn alike, and AOPD loses half as much of all else."""
    plan = study(folder, {"method": METHODS, "branch": {**BRANCH, "fixed": {**BRANCH["fixed"], **fixed}}})
    fill(plan, lambda s: constant(s, 0.5 + (0.3 + 0.01 * s.seed) * (s.entry == "aopd"), 0.4))
    write_curves([spec for spec in plan.specs if spec.stages[0].shared])
    return collect(plan)


def write_curves(specs: list[RunSpec]) -> None:
    """Write the learning curves of a branch's finished runs."""
    for spec in specs:
        lost = {"opd": [0.8, 0.7, 0.6, 0.5], "aopd": [0.8, 0.75, 0.7, 0.65]}[spec.entry]
        scores = {"tiny_weather": [0.2, 0.4, 0.6, 0.8], "tiny_arithmetic": lost, "tiny_short_sums": lost}
        stage = stage_folder(spec.path, 2, "tiny_weather")
        lines = [CurvePoint.model_validate(point).model_dump_json() for point in curve_points(scores)]
        stage.step_log.with_name(CURVE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_retention_is_judged_from_a_common_checkpoint_under_the_curves_profile(tmp_path: Path):
    found = {each.entry.name: each for each in judge_study(branched(tmp_path))}
    # Compared are 0.2 to 0.74, at which 1.35 steps are done on average; a step loses 0.05 less for aopd.
    for name in ("retains", "retains-before", "retains-probes"):
        assert found[name].effect.mean == pytest.approx(0.0675)
        assert found[name].profile == "paper"
    assert found["retains"].verdict == SUPPORTED
    assert found["retains-before"].place.task == "tiny_arithmetic"
    assert re.search("stage 2, tiny_weather, .*checkpoint after tiny_arithmetic", found["retains"].compared)
    assert found["retains-in-all-stages"].reason == "no learning curves"


def test_the_first_task_and_learning_are_those_that_the_method_trains(tmp_path: Path):
    plan = study(tmp_path, {"branch": BRANCH})
    fill(plan, lambda s: first_only(s, 0.9, 0.5 + (0.3 + 0.01 * s.seed) * (s.entry == "aopd"), 0.3), jitter)
    methods = find_methods([tmp_path / "runs"])
    found = {each.entry.name: each for each in judge_claims([read_claims("aopd")], Evidence(methods))}
    assert found["learns-first"].place.task == "tiny_weather"
    assert found["learns-first"].effect.mean == found["learns"].effect.mean == pytest.approx(0.31)


def test_a_factor_with_its_own_stages_is_compared_within_itself(tmp_path: Path):
    results = branched(tmp_path)
    factor = results.plan.study.factors["branch"]
    assert results.in_factor(factor, "aopd") == Config("tiny-branch", "aopd")
    for spec in results.plan.specs:
        if spec.stages[0].shared:
            shutil.rmtree(spec.path)
            write_finished(spec, first_only(spec, 0.9, 0.6 + 0.01 * spec.seed * (spec.entry == "opd"), 0.4))
    (contrast,) = find_contrasts(collect(results.plan), factor)
    assert contrast.learned.mean == pytest.approx(-0.01)


def test_curves_under_another_profile_do_not_answer_for_the_claim(tmp_path: Path):
    found = {
        each.entry.name: each for each in judge_study(branched(tmp_path, **{"evaluation.curve_profile": "greedy"}))
    }
    assert (found["retains"].verdict, "greedy" in found["retains"].reason) == (NOT_TESTABLE, True)


def test_runs_that_begin_the_stage_at_different_weights_are_not_compared(tmp_path: Path):
    results = branched(tmp_path)
    for spec in results.plan.specs:
        file = spec.path / MANIFEST
        content = {k: v for k, v in json.loads(file.read_text()).items() if k != CHECKSUM}
        content["weights"] = {"stage_1": f"{spec.entry if spec.seed == 2 else ''}{spec.seed}"}
        write_sealed(file, Manifest.model_validate(content))
    found = {each.entry.name: each for each in judge_study(collect(results.plan))}
    assert re.fullmatch("aopd and opd .*stage 2 .*different weights .*seed 2", found["retains"].reason)


def test_a_clear_loss_contradicts(tmp_path: Path):
    learned = {"opd": [0.8, 0.8, 0.8], "aopd": [0.5, 0.49, 0.51]}
    assert verdicts(made(tmp_path, learned, learned))["learns"] == CONTRADICTED


def test_a_gain_in_one_seed_of_three_is_not_resolved_and_the_page_says_what_could_have_been(tmp_path: Path):
    learned = {"opd": [0.5, 0.5, 0.5], "aopd": [0.9, 0.5, 0.45]}
    results = made(tmp_path, learned, learned)
    assert verdicts(results)["learns"] == NOT_RESOLVED
    interval = t_interval(pd.Series([0.4, 0.0, -0.05]))
    half = f"(half-width {50 * (interval.high - interval.low):.1f} points)"
    assert cell(results, "verdict") == f"{NOT_RESOLVED} {half}"


def test_a_p_value_is_never_written_as_zero(tmp_path: Path):
    learned = {"opd": [0.5] * 6, "aopd": [0.8, 0.81, 0.79] * 2}
    assert cell(made(tmp_path, learned, learned), "p") == "<0.001"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_test_nothing(tmp_path: Path, seeds: int):
    learned = {"opd": [0.5, 0.5][:seeds], "aopd": [0.9, 0.9001][:seeds]}
    results = made(tmp_path, learned, learned)
    assert verdicts(results)["learns"] == NOT_TESTABLE
    assert "fewer than 3 seeds" in cell(results, "verdict")


def first_only(spec: RunSpec, first: float, others: float, kept: float) -> list[list[float]]:
    """Return scores with the first stage's task learned and kept as given, and the others learned alike."""
    rows = constant(spec, others, others)
    for stage in range(1, len(rows)):
        rows[stage][0] = first if stage == 1 else kept
    return rows


def test_the_paper_s_gain_is_looked_for_in_the_first_task_alone(tmp_path: Path):
    plan = study(tmp_path, {"method": METHODS})
    fill(plan, lambda s: first_only(s, 0.5, 0.5 + 0.3 * (s.entry == "aopd") + 0.01 * s.seed, 0.3), jitter)
    results = collect(plan)
    rows = {describe_claim(verdict): verdict for verdict in judge_study(results)}
    first = rows["AOPD learns tiny_arithmetic better than OPD, weak start"]
    assert (first.effect.mean, format_reported(first.entry, first.place)) == (0, "+8.34 points, math")
    every = rows["AOPD learns more than OPD, weak start"]
    assert (every.effect.mean, format_reported(every.entry, every.place)) == (pytest.approx(0.225), "better")


def test_retention_is_matched_in_the_first_task_and_forgetting_in_all(tmp_path: Path):
    plan = study(tmp_path, {"method": METHODS})
    gain = {"opd": 0.0, "aopd": 0.4}
    fill(
        plan,
        lambda s: first_only(
            s,
            0.5 + 0.01 * s.seed * (s.entry == "aopd"),
            0.4 + gain[s.entry],
            0.3 + gain[s.entry] / 4 + 0.01 * s.seed * (s.entry == "opd"),
        ),
    )
    results = collect(plan)
    assert [pair.status for pair in pair_settings(results, RETENTION, AGAINST)] == ["matched"]
    assert [pair.status for pair in pair_settings(results, FORGETTING, AGAINST)] == ["unmatched"]


def test_learning_matched_on_average_alone_gives_no_verdict(tmp_path: Path):
    learned = {"opd": [0.6, 0.6, 0.6], "aopd": [0.7, 0.6, 0.5]}
    results = made(tmp_path, learned, {"opd": [0.3] * 3, "aopd": [0.69, 0.59, 0.49]})
    assert pairs_grid(results, RETENTION, AGAINST).rows[0][-1] == "matched on average only"
    sentence = describe_matching(results, RETENTION, AGAINST)[0]
    assert re.search(r"0 of 1 setting of aopd .*R\[1\]\[1\], 1 on average only", sentence)


def rated(folder: Path, level: Callable[[RunSpec, float], float], **changes: Any) -> Results:
    plan = study(folder, {"rate": RATES}, **changes)
    fill(plan, lambda s: constant(s, level(s, s.suite.training.optimizer.lr), 0.3), jitter)
    return collect(plan)


def test_each_aopd_setting_is_paired_with_the_opd_setting_closest_in_learning(tmp_path: Path):
    levels = {"opd": {1e-4: 0.4, 2e-4: 0.6, 4e-4: 0.7}, "aopd": {1e-4: 0.58, 2e-4: 0.72, 4e-4: 0.9}}
    results = rated(
        tmp_path, lambda s, lr: levels[s.entry][lr] + 0.01 * (s.seed - 1) * (s.entry == "aopd"), seeds=[0, 1, 2]
    )
    found = [(pair.rates, pair.status) for pair in pair_settings(results, FORGETTING, AGAINST)]
    assert found == [((1e-4, 2e-4), "matched"), ((2e-4, 4e-4), "matched"), ((4e-4, 4e-4), "unmatched")]


def test_a_seed_s_learning_rate_is_chosen_by_the_other_half_of_the_seeds(tmp_path: Path):
    """Seed 1 chooses 2e-4 for seeds 0 and 2, and they choose 4e-4 for it."""
    levels = {1e-4: [0.2, 0.2, 0.2], 2e-4: [0.5, 0.6, 0.7], 4e-4: [0.95, 0.4, 0.3]}
    results = rated(tmp_path, lambda s, lr: levels[lr][s.seed])
    (claim,) = [each for each in judge_study(results) if each.entry.name == "learns-first-best-rate"]
    assert "other half of the seeds" in claim.compared
    assert "aopd 0.0002 or 0.0004, the highest tried" in claim.compared


def test_pairs_have_equal_seeds(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method"}}, seeds=[0, 1])
    for spec in plan.specs:
        if (spec.entry, spec.seed) != ("opd", 1):
            write_finished(spec, constant(spec, 0.6, 0.3))
    assert pair_settings(collect(plan), RETENTION, AGAINST) == []


def test_claims_are_judged_for_the_starts_that_the_study_has(tmp_path: Path):
    overrides = "student.warmup.strengths.middling={steps: 600}"
    starts = {"title": "Start", "key": "student.strength", "values": ["weak", "middling"]}
    plan = study(tmp_path, {"start": starts}, overrides=[overrides])
    gain = {"weak": 0.2, "middling": 0.1}
    gains = {spec.path: gain[getattr(spec.suite.student, "strength", "")] for spec in plan.specs}
    fill(plan, lambda s: constant(s, 0.5 + gains[s.path] * (s.entry == "aopd"), 0.3), jitter)
    found = {describe_claim(each): format_reported(each.entry, each.place) for each in judge_study(collect(plan))}
    assert found["AOPD learns tiny_arithmetic better than OPD, middling start"] == "–"
    assert found["AOPD's gain in tiny_arithmetic is larger from the weak start than from the middling one"] == "–"
    assert not [claim for claim in found if "strong" in claim]


def test_a_factor_s_sentence_counts_its_comparisons_and_says_what_could_have_shown(tmp_path: Path):
    results = rated(tmp_path, lambda s, lr: {1e-4: 0.3, 2e-4: 0.6, 4e-4: 0.6}[lr] + 0.01 * s.seed * (lr != 2e-4))
    sentence = describe_factor(results, "rate")
    assert re.search(r"\b8 comparisons, about 0\.4 expected by chance .*\b4 do\b", sentence)
    half = t_interval(pd.Series([0.0, 0.01, 0.02]))
    assert f"learning {50 * (half.high - half.low):.1f} points" in sentence
    assert results.mean(Config("tiny", "opd"), "learning_accuracy").mean == pytest.approx(0.6)
