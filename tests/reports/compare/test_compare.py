"""A comparison: methods found and paired, rows by hand, and retention only at matched learning."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness.errors import RunError
from harness.stats.continual import ACCURACY, BACKWARD, FIGURES, FORGETTING, LEARNING
from harness.stats.intervals import Interval
from harness.stats.learning.matching import how_matched
from harness.stats.score_matrix import Figure, Term
from harness.stats.significance import holm
from reports.claims.claim_file import read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import judge_claims
from reports.compare.comparison import Comparison, StageComparison
from reports.compare.headline import headline_of
from reports.compare.rows import AVERAGE, comparison_table, comparison_table_by_seed
from reports.data.calibration import CALIBRATION
from reports.data.frames import load_frames
from reports.data.methods import ENTROPY, find_methods
from reports.data.tables import figures_by_seed, write_tables
from tests.support.reports.compared_runs import HIGH, LOW, START, shifted, write_three
from tests.support.reports.run_factory import PROBES, SCORES, STAGES, write_run


def test_rows_are_the_figures_of_the_report(two: list[Path]):
    """Every average is the paired mean of the report's own figures of each run."""
    compared = Comparison(find_methods(two))
    figures = figures_by_seed(load_frames(two).scores).pivot(
        index="seed", columns=["figure", "adapter"], values="value"
    )
    named: list[tuple[Figure, str]] = [(LEARNING, AVERAGE), (FORGETTING, ""), (BACKWARD, ""), (ACCURACY, AVERAGE)]
    for figure, task in named:
        row = compared.row("aopd", figure, task)
        assert row is not None
        change = figures[figure.name]["aopd"] - figures[figure.name]["opd"]
        assert list(row.difference.by_seed.values()) == pytest.approx(list(change))
        assert row.difference.items.mean == pytest.approx(change.mean())


def test_a_row_by_hand(two: list[Path]):
    table = comparison_table(Comparison(find_methods(two)).rows).set_index(["measure", "task"])
    row: Any = table.loc[("learned", "tiny_arithmetic")]
    assert (row["baseline_value"], row["method_value"], row["difference"]) == pytest.approx((0.6, 0.8, 0.2))
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx(
        (0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5)
    )
    assert (row["lost"], row["gained"], row["seeds"], row["items"]) == (0, 2 + 1 + 3, 3, 10)
    # Its seeds have equal differences and its items do not, so the other task is tested too: Holm over two.
    other: Any = table.loc[("learned", "tiny_weather")]
    assert [row["p_holm"], other["p_holm"]] == pytest.approx(holm([row["p"], other["p"]]))
    assert len(comparison_table_by_seed(Comparison(find_methods(two)).rows)) == 3 * len(table)


def test_the_best_stage_counts_for_forgetting(tmp_path: Path):
    stages = (*STAGES, "tiny_currency")
    rises = [[0.1] * 3, [0.4, 0.1, 0.1], [0.9, 0.5, 0.1], [0.2, 0.5, 0.5]]
    falls = [[0.1] * 3, [0.4, 0.1, 0.1], [0.3, 0.5, 0.1], [0.2, 0.5, 0.5]]
    paths = [
        write_run(tmp_path, name, 0, scores, stages=stages, probes=())
        for name, scores in (("opd", falls), ("aopd", rises))
    ]
    row = Comparison(find_methods(paths)).row("aopd", FORGETTING)
    assert row is not None
    assert (row.difference.base, row.difference.other) == (pytest.approx(0.1), pytest.approx(0.35))


def test_forgetting_is_judged_only_at_matched_learning(tmp_path: Path, two: list[Path]):
    unmatched = Comparison(find_methods(two)).row("aopd", FORGETTING)
    assert unmatched is not None
    assert (unmatched.learning, unmatched.judged, pd.isna(unmatched.adjusted)) == ("unmatched", False, True)
    kept = [write_three(tmp_path / "b", "opd", LOW, items=100), tmp_path / "b" / "tiny" / "sft"]
    for seed, (learned, last) in enumerate([(0.01, 0.1), (0.1, 0.2), (-0.1, 0.4)]):
        write_run(tmp_path / "b", "sft", seed, [*shifted(LOW, learned)[:2], [last, 0.7, 0.5]], items=100)
    matched = Comparison(find_methods(kept)).row("sft", FORGETTING)
    assert matched is not None
    assert (matched.learning, matched.judged) == ("matched", True)
    assert matched.adjusted == pytest.approx(matched.difference.p_of_several)


def test_learning_matches_by_the_interval_that_its_row_shows(tmp_path: Path):
    """With ten items the interval for another seed and other items is wider than the one over seeds."""
    for seed in range(3):
        write_run(tmp_path, "opd", seed, [START, [0.6, 0.2, 0.5], [0.4, 0.7, 0.5]])
        write_run(tmp_path, "aopd", seed, [START, [0.6, 0.3, 0.5], [0.3, 0.7 - 0.1 * (seed > 0), 0.4]])
    wide = [tmp_path / "tiny" / name for name in ("opd", "aopd")]
    compared = Comparison(find_methods(wide))
    learned, lost = compared.row("aopd", LEARNING, AVERAGE), compared.row("aopd", FORGETTING)
    assert learned is not None
    assert lost is not None
    assert lost.learning == how_matched(learned.difference.interval)


def test_methods_that_learn_other_tasks_by_themselves_have_no_average_of_learning(tmp_path: Path, two: list[Path]):
    """The first stage of AOPD's runs has an adapter of its own, so it counts for no method."""
    for file in two[1].rglob("manifest.json"):
        content = json.loads(file.read_text())
        content["stages"][0]["adapter"] = "sft"
        file.write_text(json.dumps(content))
    for paths in (two, two[::-1]):
        compared = Comparison(find_methods(paths))
        names = {row.quantity.name for row in compared.rows if row.task in ("", AVERAGE)}
        assert LEARNING.name not in names
        assert ACCURACY.name in names
        assert any("learned on average is not compared" in note for note in compared.notes())
        (sentence, *_) = headline_of(compared.methods)
        assert "learned on average is not compared" in sentence
        assert f"{compared.methods[1].name} ends at" in sentence


def test_what_a_shared_stage_taught_is_not_tested(tmp_path: Path):
    """Both sides took the first stage over, so its difference is 0 and its p 1: in a family of two, Holm's p doubles."""
    for adapter, learned in (("opd", (0.5, 0.5, 0.6)), ("aopd", (0.7, 0.9, 0.9))):
        for seed, score in enumerate(learned):
            run = write_run(tmp_path, adapter, seed, [START, [0.6, 0.2, 0.5], [0.4, score, 0.5]])
            content = json.loads((run / "manifest.json").read_text())
            content["stages"][0]["adapter"] = "sft"
            (run / "manifest.json").write_text(json.dumps(content))
    rows = Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"])).rows
    (learned,) = (row for row in rows if row.quantity is LEARNING and row.task != AVERAGE)
    assert learned.task == STAGES[1]
    assert learned.adjusted == learned.difference.p_of_several < 0.5
    assert [row.task for row in rows if row.quantity is ACCURACY] == [*STAGES, *PROBES, AVERAGE]


def test_calibration_of_runs_from_different_weights_is_not_paired_by_seed(tmp_path: Path):
    profiles = [{"name": "greedy", "temperature": 0.0}, {"name": "policy", "temperature": 1}]
    config = {"evaluation": {"profiles": profiles}}
    paths = [
        write_three(tmp_path, name, LOW, further={"policy": HIGH}, config=config, weights=name)
        for name in ("opd", "aopd")
    ]
    row = Comparison(find_methods(paths)).row("aopd", CALIBRATION)
    assert row is not None
    assert not row.difference.by_seed


@pytest.mark.parametrize(
    ("learned", "status"),
    [
        (Interval(0.0, -0.05, 0.05, 3), "matched"),
        (Interval(0.0, -0.06, 0.05, 3), "matched on average only"),
        (Interval(0.06, 0.02, 0.1, 3), "unmatched"),
        (Interval(0.0, float("nan"), float("nan"), 1), "matched on average only"),
        (Interval(0.0, -0.01, 0.01, 2), "matched on average only"),
        (Interval(0.0, 0.0, 0.0, 3), "matched on average only"),
    ],
)
def test_matched_means_the_whole_interval_of_at_least_three_seeds_that_differ(learned: Interval, status: str):
    assert how_matched(learned) == status


def test_holm_counts_tasks_and_methods_within_a_measure(tmp_path: Path):
    paths = [
        write_three(tmp_path, "opd", LOW),
        write_three(tmp_path, "aopd", HIGH, (0.0, 0.0, 0.1)),
        write_three(tmp_path, "gkd", HIGH, (0.1, 0.0, 0.0)),
    ]
    every = Comparison(find_methods(paths))
    rows = [row for row in every.rows if row.quantity == LEARNING and row.task != AVERAGE]
    assert len(rows) == 4
    assert [row.adjusted for row in rows] == pytest.approx(holm([row.difference.p for row in rows]), nan_ok=True)
    shown = Comparison(every.methods, tasks=["tiny_arithmetic"])
    assert {row.task for row in shown.rows} == {"tiny_arithmetic"}
    assert [row.adjusted for row in shown.rows if row.quantity == LEARNING] == [rows[0].adjusted, rows[2].adjusted]


def test_an_earlier_stage_ends_the_comparison_there(two: list[Path]):
    compared = Comparison(find_methods(two), stage=1)
    assert compared.row("aopd", FORGETTING) is None
    average = compared.row("aopd", LEARNING, AVERAGE)
    assert average is not None
    assert average.difference.seeds.mean == pytest.approx(0.2)
    assert [row.title for row in compared.rows if row.quantity == ACCURACY] == [
        *(f"final score: {task}" for task in (*STAGES, *PROBES)),
        "final score: average",
    ]


def test_two_stages_of_a_method(two: list[Path]):
    rows = {row.task: row for row in StageComparison(find_methods(two[1:], least=1), 1, 2).rows}
    found = rows["tiny_arithmetic"].difference
    assert (found.base, found.other, found.lost, found.gained) == (pytest.approx(0.8), pytest.approx(0.3), 15, 0)


def test_entropy_is_of_own_answers_alone(tmp_path: Path):
    paths = [write_three(tmp_path, name, LOW) for name in ("opd", "aopd", "sft")]
    compared = Comparison(find_methods(paths))
    row = compared.row("aopd", ENTROPY)
    assert row is not None
    assert row.difference.base == pytest.approx(1 - 0.1 * 1.5)
    assert compared.row("sft", ENTROPY) is None
    assert any(re.match("sft trains on references, .*entropy", note) for note in compared.notes())


def test_seeds_without_a_partner_are_named(tmp_path: Path):
    paths = [write_three(tmp_path, "opd", LOW), write_three(tmp_path, "aopd", HIGH, (0.0,))]
    compared = Comparison(find_methods(paths))
    assert {row.difference.seeds.seeds for row in compared.rows} == {1}
    assert any(note.startswith("opd: seeds 1, 2 ") for note in compared.notes())


def test_no_seed_in_common_is_refused(tmp_path: Path):
    paths = [write_three(tmp_path, "opd", LOW, (0.0, 0.0)), tmp_path / "tiny" / "aopd"]
    for seed in (2, 3):
        write_run(tmp_path, "aopd", seed, HIGH)
    with pytest.raises(RunError, match=r"opd .*0, 1 and aopd 2, 3, none in common"):
        _ = Comparison(find_methods(paths)).rows


def test_two_single_runs_are_paired_by_items_whatever_their_seeds(two: list[Path]):
    paths = [two[0] / "default" / "seed0", two[0] / "default" / "seed1"]
    compared = Comparison(find_methods(paths))
    assert [method.name for method in compared.methods] == ["opd, seed 0", "opd, seed 1"]
    row = compared.row("opd, seed 1", LEARNING, "tiny_arithmetic")
    assert row is not None
    assert (row.difference.seeds.mean, row.difference.gained) == (pytest.approx(0.1), 1)
    assert "differ in their seed" in compared.notes()[0]


def test_a_copy_from_another_machine_is_named_by_what_sets_its_path_apart(tmp_path: Path, two: list[Path]):
    copy = tmp_path / "there" / "runs"
    shutil.copytree(two[0].parent, copy / "tiny")
    names = [method.name for method in find_methods([two[0], copy / "tiny" / "opd"])]
    assert names[1] == "opd at there/runs"
    assert len(set(names)) == 2


def test_a_folder_of_several_methods_gives_them_all(two: list[Path]):
    assert [method.name for method in find_methods([two[0].parent])] == ["opd", "aopd"]


def test_two_orders_of_the_same_tasks_are_paired_by_task_without_what_they_forget(tmp_path: Path):
    turned = [[0.1, 0.5, 0.6], [0.7, 0.5, 0.5], [0.6, 0.8, 0.5]]
    for seed in (0, 1):
        write_run(tmp_path, "opd", seed, LOW)
        write_run(tmp_path, "opd", seed, turned, order="back", stages=STAGES[::-1])
    compared = Comparison(find_methods([tmp_path / "tiny/opd" / order for order in ("default", "back")]))
    learned = compared.row("opd, back", LEARNING, AVERAGE)
    assert learned is not None
    assert learned.difference.seeds.mean == pytest.approx((0.8 + 0.7) / 2 - (0.6 + 0.7) / 2)
    assert learned.difference.items.mean == pytest.approx(learned.difference.seeds.mean)
    final = compared.row("opd, back", ACCURACY, "tiny_arithmetic")
    assert final is not None
    assert final.difference.seeds.mean == pytest.approx(0.8 - 0.4)
    assert {row.quantity.name for row in compared.rows}.isdisjoint({FORGETTING.name, BACKWARD.name})
    assert any("can forget different ones" in note for note in compared.notes())


def test_several_orders_need_a_choice(tmp_path: Path, two: list[Path]):
    write_run(tmp_path, "opd", 0, LOW, order="back")
    with pytest.raises(RunError, match=r"orders back, default; .*--order"):
        find_methods(two)
    assert find_methods(two, order="default")[0].first.order == "default"
    with pytest.raises(RunError, match=r"order 'joint'; .*back, default"):
        find_methods(two, order="joint")


def test_mistakes_name_what_there_is(two: list[Path]):
    with pytest.raises(RunError, match=r"one method, opd; .*2 methods"):
        find_methods(two[:1])
    with pytest.raises(RunError, match=r"profile 'sampled'; .*\bdefault\b"):
        find_methods(two, profile="sampled")
    with pytest.raises(RunError, match=f"^{re.escape(str(two[0]))} is named twice"):
        find_methods([two[0], two[0]])
    methods = find_methods(two)
    with pytest.raises(RunError, match=r"--stage 3: .*stages 0"):
        Comparison(methods, stage=3)
    with pytest.raises(RunError, match=r"--task weather: .*tiny_arithmetic"):
        Comparison(methods, tasks=["weather"])


def test_other_conditions_across_suites_are_refused(tmp_path: Path):
    paths = [
        write_run(tmp_path, "opd", 0, SCORES),
        write_run(tmp_path, "opd", 0, SCORES, suite="tiny-lr", comparability="c1"),
    ]
    with pytest.raises(RunError, match="cannot be paired"):
        _ = Comparison(find_methods(paths)).rows


def test_a_figure_that_is_registered_is_seen_in_value_comparison_claims_and_csv(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Adding a figure touches one definition: its terms serve everything else."""
    figure = replace(
        LEARNING,
        name="worst_loss",
        label="Loss of the first task",
        formula="R[1][1] − R[T][1]",
        cells=lambda matrix, task: [Term(task, 1), Term(task, matrix.stages, -1.0)],
        over=lambda matrix: matrix.trained[:1],
        short="first lost",
        of_task="lost_first",
        compared="average",
    )
    monkeypatch.setitem(FIGURES, figure.name, figure)
    frames, methods = load_frames(two), find_methods(two)
    values = figures_by_seed(frames.scores).query("figure == 'worst_loss' and adapter == 'aopd'")["value"]
    assert list(values) == pytest.approx([0.5, 0.5, 0.5])
    row = Comparison(methods).row("aopd", figure)
    assert row is not None
    assert (row.difference.base, row.difference.other) == pytest.approx((0.2, 0.5))
    assert row.difference.items.mean == pytest.approx(row.difference.interval.mean)
    assert math.isfinite(row.difference.detectable)
    assert "worst_loss" in set(comparison_table([row])["figure"])
    write_tables(frames, tmp_path / "csv")
    assert "worst_loss" in set(pd.read_csv(tmp_path / "csv" / "figures.csv")["figure"])
    claim = {"name": "c", "text": "t", "unit": "points", "smallest_effect": 0}
    claim |= {"expression": "metric(aopd, worst_loss) > metric(opd, worst_loss)"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"title": "t", "source": "s", "claims": [claim]}))
    (verdict,) = judge_claims([read_claims(tmp_path / "c.yaml")], Evidence(methods))
    assert verdict.effect.mean == pytest.approx(0.3)
