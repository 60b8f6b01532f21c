"""Items that share a cluster count as few: in the sampling error, in a comparison's intervals and in a claim's verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.stats.claim_verdicts import NOT_RESOLVED, SUPPORTED
from reports.claims.claim_file import read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import judge_claims
from reports.compare.comparison import Comparison
from reports.compare.rows import comparison_table
from reports.data.frames import load_frames
from reports.data.methods import find_methods
from reports.document.sentences import opening_sentences
from tests.support.reports.claim_factory import write_claims
from tests.support.reports.run_factory import write_run

TASK = "tiny_arithmetic"


def write_two(folder: Path, changes: list[float], **options: Any) -> Path:
    """Write OPD at 50 % on 100 items after its stage, and AOPD with the next items right too, a share of `changes` a seed."""
    for seed, change in enumerate(changes):
        for adapter, score in (("opd", 0.5), ("aopd", 0.5 + change)):
            scores = [[0.2], [score]]
            write_run(folder, adapter, seed, scores, stages=(TASK,), probes=(), items=100, **options)
    return folder


@pytest.mark.parametrize(
    ("phrasings", "worth", "error"),
    [
        (1, "100 independent test items", 9.8),
        (10, "100 test items, worth 10 independent ones", 31.0),
        (40, "100 test items, worth 3 independent ones", 58.8),  # 40, 40 and 20 items: 100^2 / 3600 = 2.78
    ],
)
def test_the_sampling_error_counts_clusters(tmp_path: Path, phrasings: int, worth: str, error: float):
    """A score of n independent items is uncertain by up to 1.96 sqrt(0.25 / n)."""
    write_run(tmp_path, "opd", items=100, phrasings=phrasings)
    limits = opening_sentences(load_frames([tmp_path]))[-1]
    assert worth in limits
    assert f"±{error:.1f} points" in limits


def test_the_task_with_the_fewest_independent_items_sets_the_sampling_error_without_stored_answers_too(tmp_path: Path):
    write_run(tmp_path, "opd", items=100)
    write_run(tmp_path, "opd", suite="clustered", items=100, phrasings=10, samples=False)
    assert load_frames([tmp_path]).fewest_items == (100, 10)


def test_a_comparison_has_the_interval_of_the_cluster_means_by_hand(tmp_path: Path):
    """The change is 1 in clusters 5, 6 and 7 of ten and 0 in the others: 0.3 ± t_{0.975, 9} sqrt(0.21 / 9)."""
    found = {}
    for phrasings in (1, 10):
        folder = write_two(tmp_path / str(phrasings), [0.3], phrasings=phrasings)
        table = comparison_table(Comparison(find_methods([folder / "tiny/opd", folder / "tiny/aopd"])).rows)
        found[phrasings] = table.set_index(["measure", "task"]).loc[("learned", TASK)]
    row: Any = found[10]
    assert (row["independent_items"], row["items"]) == (10, 100)
    assert row["items_high"] - row["difference"] == pytest.approx(2.262157 * math.sqrt(0.21 / 9), rel=1e-6)
    assert found[1]["independent_items"] == 100
    assert found[1]["items_high"] < row["items_high"]


@pytest.mark.parametrize(("phrasings", "verdict"), [(1, SUPPORTED), (20, NOT_RESOLVED)])
def test_a_claim_is_judged_on_clusters(tmp_path: Path, phrasings: int, verdict: str):
    """AOPD gains 8 items of 100: many independent ones, but one cluster of five where 20 items share one."""
    write_two(tmp_path, [0.07, 0.08, 0.09], phrasings=phrasings)
    claims = [read_claims(write_claims(tmp_path, {"smallest_effect": 0}))]
    (row,) = judge_claims(claims, Evidence(find_methods([tmp_path])))
    assert row.verdict == verdict
    assert row.effect.mean == pytest.approx(0.08)
