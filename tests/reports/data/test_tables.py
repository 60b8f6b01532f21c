"""The tables' numbers equal hand computations and plain pandas over the run directory."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from harness.rundir.files import write_json
from harness.stats.continual import FIGURES
from reports.data import tables
from reports.data.frames import Frames, load_frames
from reports.document import grids
from reports.document.sentences import opening_sentences
from reports.report.report_data import ReportData
from reports.report.sections import cost_section
from tests.support.reports.run_factory import write_run
from tests.support.runs import vouch

OTHER = [[0.50, 0.10, 0.60], [0.60, 0.20, 0.50], [0.50, 0.70, 0.60]]


@pytest.fixture
def frames(tmp_path: Path) -> Frames:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, scores=OTHER)
    return load_frames([tmp_path])


def test_the_t_interval_is_scipys():
    values = pd.Series([0.2, 0.5, 0.9, math.nan])
    known = values.dropna()
    low, high = stats.t.interval(0.95, 2, loc=known.mean(), scale=stats.sem(known))
    found = tables.t_interval(values)
    assert (found.mean, found.low, found.high, found.seeds) == pytest.approx((known.mean(), low, high, 3))


def test_one_seed_has_a_mean_and_no_interval_and_none_has_nothing():
    one = tables.t_interval(pd.Series([0.4]))
    assert (one.mean, one.seeds) == (0.4, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert tables.t_interval(pd.Series([math.nan])).seeds == 0


def test_figures_per_seed_equal_the_hand_computation(frames: Frames):
    table = tables.figures_by_seed(frames.scores).pivot(index="figure", columns="seed", values="value")
    expected = {
        "average_accuracy": (0.6, 0.6),  # (0.3+0.9)/2; (0.5+0.7)/2
        "learning_accuracy": (0.85, 0.65),  # (0.8+0.9)/2; (0.6+0.7)/2
        "backward_transfer": (-0.5, -0.1),  # 0.3-0.8; 0.5-0.6
        "forgetting_chaudhry": (0.5, 0.1),
        "forgetting_from_start": (0.5, 0.1),  # max(0.5, 0.8)-0.3; max(0.5, 0.6)-0.5
        "probe_change:tiny_long_sums": (-0.2, 0.0),  # 0.4-0.6; 0.6-0.6
    }
    for name, values in expected.items():
        assert table.loc[[name]].to_numpy()[0] == pytest.approx(values), name


def test_the_figure_table_has_means_intervals_and_formulas(frames: Frames):
    table = tables.with_plain_columns(tables.figure_table(frames.scores)).set_index("figure")
    row = table.loc["forgetting_chaudhry"]
    half = stats.t.ppf(0.975, 1) * 0.2  # seeds 0.5 and 0.1: s = 0.2828, s/sqrt(2) = 0.2
    assert half > 1.3  # so the bounds are those of a difference of shares
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((0.3, -1, 1, 2))
    assert "max" in row["formula"]
    assert "intransigence" not in table.index
    assert table.loc["probe_change:tiny_long_sums", "formula"] == "R[T][p] − R[0][p]"


@pytest.mark.pitfall(
    "a figure named forgetting means nothing without its formula",
    area="Grading",
    guard="`reports/document/grids.py` prints formula and source next to every figure",
    evidence="only the name is printed",
)
def test_definitions_of_forgetting_stand_side_by_side_with_formula_and_source(frames: Frames):
    grid = grids.figures_grid(frames.scores)
    rows = [dict(zip(grid.header, row, strict=True)) for row in grid.rows if "orgetting" in str(row[0])]
    kinds = ("forgetting_chaudhry", "forgetting_from_start", "forgetting_avalanche", "probe_forgetting")
    expected = [(FIGURES[kind].formula, FIGURES[kind].source) for kind in kinds]
    assert [(row["formula"], row["source"]) for row in rows] == expected
    assert len({row["figure"] for row in rows}) == 4


def test_csv_files_hold_the_results_files_numbers(frames: Frames, tmp_path: Path):
    tables.write_tables(frames, tmp_path / "out")
    files = sorted(tmp_path.glob("tiny/*/*/seed*/stage_*/eval/*/results.json"))
    raw = pd.DataFrame([json.loads(file.read_text()) for file in files])
    expected = raw.groupby(["stage", "task"])["score"].agg(["mean", "min", "max", "count"])
    read = pd.read_csv(tmp_path / "out" / "retention.csv").set_index(["stage", "task"]).loc[expected.index]
    assert read["mean"].tolist() == pytest.approx(expected["mean"].tolist())
    assert read["smallest"].tolist() == expected["min"].tolist()
    assert read["seeds"].tolist() == [2] * 9
    wide = pd.read_csv(tmp_path / "out" / "retention_wide.csv")
    assert wide["tiny_arithmetic"].tolist() == pytest.approx([0.5, 0.7, 0.4])
    assert wide["stage"].tolist() == [0, 1, 2]


def test_outcomes_are_shares_of_the_pooled_items_at_both_ends(frames: Frames):
    table = tables.outcomes_table(frames.scores)
    row = table[(table["task"] == "tiny_arithmetic") & (table["when"] == "end")].iloc[0]
    # correct 3 and 5 of 10; wrong half of the rest, 3 and 2; truncated 4 and 3
    assert row[["correct", "wrong", "unparsed", "truncated"]].tolist() == pytest.approx([0.4, 0.25, 0.0, 0.35])
    assert row["items"] == 20


def test_outcomes_change_over_the_runs_that_have_both_ends(tmp_path: Path):
    """The finished run stays at 20 %; the other one began at 80 % and has only its start and its first stage."""
    write_run(tmp_path, seed=0, scores=[[0.2, 0.1, 0.6]] * 3)
    write_run(tmp_path, seed=1, scores=[[0.8, 0.1, 0.6]] * 3, evaluated=6)
    scores = load_frames([tmp_path]).scores
    table = tables.outcomes_table(scores)
    found = table[table["task"] == "tiny_arithmetic"].set_index("when")
    assert found["correct"].to_dict() == pytest.approx({"start": 0.2, "end": 0.2})
    assert found["seeds"].to_dict() == {"start": 1, "end": 1}
    grid = grids.outcomes_grid(scores)
    rows = [dict(zip(grid.header, row, strict=True)) for row in grid.rows]
    assert [(row["seeds"], row["items"]) for row in rows] == [("1", "10")] * 3
    assert rows[0]["correct %"] == "20.0 → 20.0"


def test_starts_alone_are_shown_where_no_run_has_an_end(tmp_path: Path):
    for seed, start in enumerate((0.2, 0.8)):
        write_run(tmp_path, seed=seed, scores=[[start, 0.1, 0.6]] * 3, evaluated=6)
    grid = grids.outcomes_grid(load_frames([tmp_path]).scores)
    first = dict(zip(grid.header, grid.rows[0], strict=True))
    assert (first["seeds"], first["correct %"]) == ("2", "50.0 → –")


def test_several_answers_change_over_the_runs_that_have_both_ends(tmp_path: Path):
    """The finished run keeps a pass@2 of 40 %; the other one began at 80 % and has no end."""
    for seed, (share, evaluated) in enumerate(((0.4, None), (0.8, 6))):
        for file in write_run(tmp_path, seed=seed, evaluated=evaluated).rglob("results.json"):
            found = json.loads(file.read_text())
            write_json(file, found | {"metrics": {**found["metrics"], "pass@2": share}})
            vouch(file)
    grid = grids.several_answers_grid(load_frames([tmp_path]))
    rows = [dict(zip(grid.header, row, strict=True)) for row in grid.rows]
    assert {(row["seeds"], row["pass@2 %"]) for row in rows} == {("1", "40.0 → 40.0")}


def test_a_row_at_a_glance_is_of_the_runs_that_have_ended(tmp_path: Path):
    """The second run has learned both tasks, 90 and 90 %, and lacks the other evaluations of its last stage."""
    write_run(tmp_path, seed=0, scores=[[0.5, 0.1, 0.6], [0.6, 0.2, 0.5], [0.6, 0.6, 0.4]])
    run = write_run(tmp_path, seed=1, scores=[[0.5, 0.1, 0.6], [0.9, 0.2, 0.5], [0.9, 0.9, 0.4]])
    shutil.rmtree(run / "stage_2_tiny_weather/eval/tiny_arithmetic")
    frames = load_frames([tmp_path])
    (row,) = tables.frontier_table(frames.scores).to_dict("records")
    assert [row[name].mean for name in ("learned", "final", "forgot")] == pytest.approx([0.6, 0.6, 0.0])
    assert "aopd (1 seed) scored 60.0 % on a task" in " ".join(opening_sentences(frames))


def test_cost_is_the_mean_over_runs(frames: Frames):
    row = tables.cost_table(frames).iloc[0]
    # 2 stages of 4 steps, 1000 tokens, 0.25 s of teacher and 1 s in all; 9 evaluations of 1.5 s
    assert row[["runs", "steps", "tokens", "seconds_teacher", "seconds_evaluate"]].tolist() == [2, 8, 8000, 2.0, 13.5]
    assert row[["seconds_models", "seconds_total"]].tolist() == [5.0, 40.0]
    # 5 s of models, 13.5 s of evaluation and 8 steps whose phases take 1 s
    assert row["share_outside"] == pytest.approx(1 - (5 + 13.5 + 8) / 40)


def test_a_stage_that_one_run_trains_for_all_is_no_cost_of_each(tmp_path: Path):
    for seed in range(2):
        file = write_run(tmp_path, "opd", seed) / "manifest.json"
        found = json.loads(file.read_text())
        found["stages"][0]["adapter"] = "sft"
        write_json(file, found)
    row = tables.cost_table(load_frames([tmp_path])).iloc[0]
    assert row[["runs", "steps", "tokens", "seconds_teacher", "seconds_step"]].tolist() == [2, 4, 4000, 1.0, 4.0]
    assert row["share_outside"] == pytest.approx(1 - (5 + 13.5 + 4) / 40)


def test_peak_memory_is_the_highest_of_all_sessions_and_runs(tmp_path: Path):
    run = write_run(tmp_path, "opd", 0) / "manifest.json"
    write_run(tmp_path, "opd", 1)
    write_run(tmp_path, "aopd", 0)
    found = json.loads(run.read_text())
    resumed = {"peak_memory": {"of": "process", "train": 5 * 2**30}}
    run.write_text(json.dumps({**found, "sessions": [*found["sessions"], resumed]}))
    frames = load_frames([tmp_path])
    peaks = tables.cost_table(frames).set_index("label")[["memory_train", "memory_evaluate"]]
    assert (peaks / 2**30).T.to_dict("list") == {"opd": [5.0, 1.5], "aopd": [1.0, 1.5]}
    grid = grids.cost_grid(frames)
    assert [row[4:6] for row in grid.rows] == [["5.00", "1.50"], ["1.00", "1.50"]]
    assert list(grid.header[4:6]) == ["peak GiB, training", "peak GiB, evaluation"]


def test_runs_that_noted_no_memory_have_a_dash_and_the_section_says_so(tmp_path: Path):
    path = write_run(tmp_path, "opd") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sessions": []}))
    report_data = ReportData(load_frames([tmp_path]), ())
    assert grids.cost_grid(report_data.frames).rows[0][4:6] == ["–", "–"]
    assert "not recorded by every run" in str(cost_section.make_section(report_data).blocks[-1])


def test_intransigence_is_measured_against_the_joint_run_of_the_same_seed(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, scores=[[0.5, 0.1, 0.6], [0.9, 1.0, 0.5]], order="joint", joint=True)
    values = tables.figures_by_seed(load_frames([tmp_path]).scores).set_index(["order", "figure"])["value"]
    # R* = (0.9, 1.0) against R[j][j] = (0.8, 0.9)
    assert values["default", "intransigence"] == pytest.approx(0.1)
    assert pd.isna(values["joint", "intransigence"])
    assert values["joint", "learning_accuracy"] == pytest.approx(0.95)


def test_an_unfinished_run_has_no_end_figures_and_no_end_outcomes(tmp_path: Path):
    write_run(tmp_path, evaluated=5)
    scores = load_frames([tmp_path]).scores
    assert tables.figures_by_seed(scores).set_index("figure")["value"].isna().loc["average_accuracy"]
    assert set(tables.outcomes_table(scores)["when"]) == {"start"}
