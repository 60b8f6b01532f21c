"""What a downloaded run names is not executed: not by `regrade`, `report` or `compare`, unless the user says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import RunError
from harness.evaluation.regrading import regrade_runs
from reports.compare.comparison import Comparison
from reports.data.methods import find_methods
from reports.report.build import build_report
from tests.support.models import write_task
from tests.support.runs import vouch


@pytest.fixture
def downloaded(aopd: Path, opd: Path, tmp_path: Path) -> Path:
    """Two runs whose manifests name a task folder that executes code when it is loaded."""
    tasks = tmp_path / "tasks"
    write_task(tasks, grader='return {"strict": 1.0}')
    for code in tasks.rglob("*.py"):
        code.write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n{code.read_text()}")
    for run, name in ((aopd, "aopd"), (opd, "opd")):
        copy = shutil.copytree(run, tmp_path / "runs" / name)
        for cell in copy.glob("stage_*/eval/tiny_reminder"):
            shutil.rmtree(cell)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["config"]["include"] = [str(tasks)]
        manifest["probes"] = []
        (copy / "manifest.json").write_text(json.dumps(manifest))
        vouch(copy / "manifest.json")
    return tmp_path


def test_nothing_that_a_downloaded_run_names_is_executed(downloaded: Path, blank_figures: None):
    runs = [downloaded / "runs/aopd", downloaded / "runs/opd"]
    with pytest.raises(RunError, match=r"task folders .*--include-path.*--trust"):
        regrade_runs(runs)
    assert CliRunner().invoke(app, ["regrade", *map(str, runs)]).exit_code != 0
    build_report(runs, downloaded / "report")
    Comparison(find_methods(runs), None, [], False, 0.05)
    assert not (downloaded / "executed").exists()


def test_a_user_who_trusts_the_folders_or_the_run_can_grade(downloaded: Path):
    runs = [downloaded / "runs/aopd"]
    named = regrade_runs(runs, include=[downloaded / "tasks"])
    assert named == regrade_runs(runs, trust=True)
    assert named
