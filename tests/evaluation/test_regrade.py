"""`harness regrade` grades stored answers again, keeps the old grades, and generates nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from harness.cli.app import main
from harness.config.base import digest
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError, TaskError
from harness.evaluation import hf_model
from harness.evaluation.regrading import RegradedCell, regrade_runs, regrade_table
from harness.pipeline.checkpoint_matrix import matrix_table
from harness.pipeline.run import run
from harness.rundir.integrity import find_faults
from harness.rundir.reader import find_runs
from harness.rundir.stage_folder import StageFolder
from reports.compare.comparison import StageComparison
from reports.data.frames import load_frames
from reports.data.methods import find_methods
from reports.report.teacher_scores import teacher_cells
from tests.support.models import write_task
from tests.support.runs import flip_a_byte, vouch

TASKS = ("made_up", "tiny_currency", "tiny_reminder", "tiny_weather")
STAGES = ("stage_0", "stage_1_tiny_weather", "stage_2_tiny_currency")


@pytest.fixture(scope="module")
def undisturbed(micro: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the control.

    `made_up` calls every second answer parsed and none right, so that its two graders differ.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    write_task(folder / "tasks", grader='return {"strict": 0.0, "parsed": float(int(doc["target"]) % 2)}')
    change = {"probes": ("tiny_reminder", "made_up"), "include": (str(folder / "tasks"),)}
    return run(RunSpec(micro.model_copy(update=change), "none", 0, out=folder / "runs"))


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, at which the engine must not be called."""
    monkeypatch.setattr(hf_model.HFEngine, "generate", lambda *_: pytest.fail("generated"))
    return shutil.copytree(undisturbed, tmp_path / "runs/micro/none/default/seed0")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.glob("stage_*/eval/*/*")}


def test_another_grader_of_the_task_gives_the_score_and_the_old_grades_stay(finished: Path):
    before = contents(finished)
    rows = regrade_runs([finished], "parsed", trust=True)
    assert contents(finished) == before
    assert [(row.stage, row.cell) for row in rows] == [(stage, task) for stage in STAGES for task in TASKS]
    for row in rows:
        samples = pd.read_parquet(finished / row.stage / "eval" / row.cell / "samples.parquet")
        assert row.before == samples["strict"].mean()
        assert row.after == samples["parsed"].mean()
        assert (row.items, row.changed) == (4, (samples["strict"] != samples["parsed"]).sum())
        (folder,) = (finished / row.stage / "regraded" / row.cell).iterdir()
        results = json.loads((folder / "results.json").read_text())
        assert folder.name == f"parsed-{digest([results['keys']['generation'], results['keys']['grading']])}"
        assert (results["metric"], results["score"]) == ("parsed", row.after)
        assert results["regraded"]["grader"] == "parsed"
        assert results["regraded"]["from"]["metric"] == "strict"
        assert results["regraded"]["from"]["score"] == row.before
        assert results["stage"] == STAGES.index(row.stage)
    assert [(row.before, row.after, row.changed) for row in rows if row.cell == "made_up"] == [(0.0, 0.5, 2)] * 3
    table = regrade_table(rows)
    assert isinstance(table, Table)
    assert table.row_count == sum(row.changed > 0 for row in rows)


def test_the_table_shows_a_folder_in_brackets_as_it_is(capsys: pytest.CaptureFixture[str]):
    rows = [RegradedCell(Path(name), "stage_0", "a", "m", 0.0, 1.0, 1, 1) for name in ("[red]", "[/x]")]
    Console(width=120).print(regrade_table(rows))
    Console(width=120).print(matrix_table(pd.DataFrame({"a": [0.5]}, index=["[blue]"])))
    shown = capsys.readouterr().out
    assert [name for name in ("[red]", "[/x]", "[blue]") if name in shown] == ["[red]", "[/x]", "[blue]"]


def test_regrading_again_writes_nothing_and_says_the_same(finished: Path):
    first = regrade_runs([finished], "parsed", trust=True)
    written = {str(path): path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert regrade_runs([finished], "parsed", trust=True) == first
    assert {str(path): path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == written


def test_todays_grader_that_is_the_old_one_changes_nothing(finished: Path):
    assert all(row.changed == 0 and row.before == row.after for row in regrade_runs([finished], trust=True))
    assert not list(finished.glob("stage_*/regraded"))


def test_a_report_shows_the_chosen_graders_scores(finished: Path):
    own = load_frames([finished]).scores
    with pytest.raises(RunError, match=r"'parsed'; .*harness regrade .* --grader parsed"):
        load_frames([finished], "parsed")
    rows = regrade_runs([finished], "parsed", trust=True)
    shown = load_frames([finished], "parsed").scores.set_index(["stage", "task"])
    assert set(shown["metric"]) == {"parsed"}
    assert all(shown.loc[(STAGES.index(row.stage), row.cell), "score"] == row.after for row in rows)
    pd.testing.assert_frame_equal(load_frames([finished]).scores, own)


def test_grades_of_answers_that_were_replaced_since_are_not_shown(finished: Path):
    regrade_runs([finished], "parsed", trust=True)
    file = finished / "stage_0/eval/made_up/results.json"
    results = json.loads(file.read_text())
    results["keys"]["generation"] = "0" * 16
    file.write_text(json.dumps(results))
    vouch(file)
    folder = StageFolder(finished / "stage_0")
    assert folder.newest_grading("made_up", "parsed") is None
    assert folder.newest_grading("tiny_weather", "parsed") is not None


def test_a_grader_that_no_task_offers_is_refused_with_those_they_do(finished: Path):
    with pytest.raises(TaskError, match=r"--grader nice: .*\bstrict, sdft, aopd"):
        regrade_runs([finished], "nice", trust=True)


def test_a_corrected_grader_regrades_and_reports_show_the_newest_grades(
    micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = tmp_path / "tasks"
    write_task(tasks, grader='return {"strict": 0.0, "parsed": 1.0}')
    suite = micro.model_copy(update={"probes": ("made_up",), "include": (str(tasks),)})
    folder = run(RunSpec(suite, "opd", 0, out=tmp_path / "runs"))
    monkeypatch.setattr(hf_model.HFEngine, "generate", lambda *_: pytest.fail("generated"))
    write_task(tasks, grader='return {"strict": 1.0, "parsed": 1.0}')
    changed = {row.stage: row for row in regrade_runs([folder], trust=True) if row.cell == "made_up"}
    regraded = [(changed[s].before, changed[s].after, changed[s].changed) for s in (*STAGES, "teacher")]
    assert regraded == [(0.0, 1.0, 4)] * 4
    assert shown(folder) == {1.0}
    assert taught(folder) == {1.0}
    assert list(find_faults(find_runs([folder])[0])) == []
    write_task(tasks, grader='return {"strict": 0.0, "parsed": 1.0}')
    assert all(row.changed == 0 for row in regrade_runs([folder], trust=True))
    assert shown(folder) == {0.0}, "the grader is as it was"
    assert taught(folder) == {0.0}
    damaged, *_ = sorted(folder.glob("teacher/regraded/made_up/*/samples.parquet"))
    flip_a_byte(damaged)
    assert [fault.place for fault in find_faults(find_runs([folder])[0])] == [damaged.parent]


def shown(folder: Path) -> set[float]:
    scores = load_frames([folder]).scores
    return set(scores.loc[scores["task"] == "made_up", "score"])


def taught(folder: Path) -> set[float]:
    scores = teacher_cells(load_frames([folder]))
    return set(scores.loc[scores["task"] == "made_up", "score"])


def test_the_command_prints_old_and_new_scores(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    printed: dict[str, str] = {}
    for grader in ("parsed", "aopd"):
        monkeypatch.setattr(sys, "argv", ["harness", "regrade", str(finished.parent), "--grader", grader, "--trust"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        printed[grader] = capsys.readouterr().out
    assert printed["parsed"].count("made_up") == 3
    assert "2 of 4" in printed["parsed"]
    # One task does not offer this grader, and the others' grades stay.
    assert "made_up" not in printed["aopd"]
    assert "9 of 9" in printed["aopd"]
    assert len(printed["aopd"].splitlines()) == 1


def test_a_comparison_says_whose_grades_it_shows(finished: Path):
    regrade_runs([finished], "aopd", trust=True)
    assert StageComparison(find_methods([finished], least=1), 0, 2).notes() == []
    notes = StageComparison(find_methods([finished], grader="aopd", least=1), 0, 2).notes()
    (note,) = notes
    assert re.search(r"\bgrader aopd; made_up, ", note)
