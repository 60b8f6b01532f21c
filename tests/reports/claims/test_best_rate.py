"""Claims at each method's best learning rate: halves of the seeds choose, and a wider interval where their choices differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.stats.intervals import t_interval
from reports.claims.claim_file import read_claims
from reports.claims.evidence import ClaimScope, Evidence, count_seeds, measure_effect
from reports.claims.judge_claims import Verdict, judge_claims
from reports.data.frames import load_frames
from reports.data.methods import methods_of
from tests.support.reports.claim_factory import write_claims
from tests.support.reports.run_factory import write_run

BEST = {"smallest_effect": 0, "scope": {"tasks": ["first"], "rate": "best"}}


def judged(folder: Path, aopd: list[list[float]]) -> Verdict:
    """Judge AOPD's learning against OPD's, 30 % at its better rate; `aopd` is AOPD's by rate and seed."""
    scores = {"aopd": aopd, "opd": [[0.3] * 3, [0.2] * 3]}
    by_rate = {}
    for adapter, rates in scores.items():
        for place, learned in enumerate(rates):
            for seed, score in enumerate(learned):
                rows = [[0.1], [score]]
                write_run(folder / adapter / str(place), adapter, seed, rows, stages=("sums",), probes=(), items=20)
        found = [methods_of(load_frames([folder / adapter / str(place)]))[0] for place in range(len(rates))]
        by_rate["weak", adapter] = dict(zip((1e-4, 2e-4), found, strict=True))
    methods = [rates[1e-4] for rates in by_rate.values()]
    (row,) = judge_claims([read_claims(write_claims(folder, BEST))], Evidence(methods, by_rate))
    return row


def test_a_look_at_best_rates_counts_the_seeds_that_have_all_rates(tmp_path: Path):
    """Five seeds at the suite's own rate, three at the other one."""
    by_rate = {}
    for adapter, level in (("opd", 0.3), ("aopd", 0.6)):
        for place, seeds in enumerate((5, 3)):
            for seed in range(seeds):
                rows = [[0.1], [level + 0.05 * (seed % 2)]]
                write_run(tmp_path / adapter / str(place), adapter, seed, rows, stages=("sums",), probes=(), items=20)
        found = [methods_of(load_frames([tmp_path / adapter / str(place)]))[0] for place in range(2)]
        by_rate["weak", adapter] = dict(zip((1e-4, 2e-4), found, strict=True))
    evidence = Evidence([rates[1e-4] for rates in by_rate.values()], by_rate)
    (claim,) = read_claims(write_claims(tmp_path, BEST)).claims
    place = ClaimScope(start="weak", task="sums")
    assert count_seeds(claim, place, evidence, measure_effect(claim, place, "", evidence).estimate) == 3


@pytest.mark.parametrize("metric", ["entropy", "calibration"])
def test_a_rate_is_not_chosen_by_what_is_no_score(tmp_path: Path, metric: str):
    claim = {"expression": f"metric(aopd, {metric}) > metric(opd, {metric})", "scope": {"rate": "best"}}
    claim |= {"unit": "nats" if metric == "entropy" else "points"}
    with pytest.raises(ConfigError, match=f"rate: best .*score, .*{metric}"):
        read_claims(write_claims(tmp_path, claim))


def test_where_the_seeds_agree_on_a_rate_the_interval_is_that_of_its_scores(tmp_path: Path):
    row = judged(tmp_path, [[0.6, 0.5, 0.5], [0.1, 0.2, 0.1]])
    expected = t_interval([0.3, 0.2, 0.2])
    assert (row.seeds.low, row.seeds.high) == pytest.approx((expected.low, expected.high))


def test_where_the_seeds_choose_different_rates_the_interval_is_wider(tmp_path: Path):
    """The first rate has 60, 60, 30 %, the second 50 % always: seeds 0 and 2 get the first, seed 1 the second.

    The chosen scores are 60, 50 and 30 %, and the standard error grows by a factor that is 1.51 for three seeds.
    """
    row = judged(tmp_path, [[0.6, 0.6, 0.3], [0.5, 0.5, 0.5]])
    expected, factor = t_interval([0.3, 0.2, 0.0]), 1.51207
    assert row.effect.mean == pytest.approx(expected.mean)
    assert row.seeds.half_width == pytest.approx(factor * expected.half_width, rel=1e-4)
    (over_seeds,), (plain,) = row.seeds.errors, expected.errors
    assert over_seeds.error == pytest.approx(factor * plain.error, rel=1e-4)
    assert row.effect.errors[0].error >= over_seeds.error * (1 - 1e-9)
