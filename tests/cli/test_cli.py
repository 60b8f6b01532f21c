"""The command line: what it prints, what it does not touch, and mistakes that are one line, exit code 2 and no traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.app import main
from tests.support.models import micro_suite, write_task, write_yaml


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an empty cache next to it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")
    return folder


class Result:
    """What a command did: exit code, output, errors."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def harness(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the command line as a function of its arguments, in this process."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def test_a_folder_in_brackets_is_printed_as_it_is(harness: Any, monkeypatch: pytest.MonkeyPatch):
    # The module that writes reports is imported first, so that it keeps the real function.
    monkeypatch.setattr("reports.report.build.write_report", lambda _, out: out / "report.html")
    monkeypatch.setattr("reports.data.frames.load_frames", lambda *_: None)
    result = harness("report", "runs/[red]/[/x]")
    assert (result.code, result.out) == (0, "report: runs/[red]/[/x]/report/report.html\n")


def test_a_dry_run_prints_stages_and_work_and_writes_nothing(harness: Any, here: Path, micro_file: Path):
    result = harness("run", str(micro_file), "--adapter", "aopd", "--dry-run")
    assert result.code == 0, result.err
    assert "stages of micro, order default" in result.out
    assert "estimated work" in result.out
    assert "dry run: nothing was written" in result.out
    assert list(here.iterdir()) == []
    assert not (here.parent / "cache").exists()


def test_a_dry_sweep_plans_all_adapters_and_seeds(harness: Any, here: Path, micro_file: Path):
    sets = ("--set", "training.train_items=50")
    result = harness("sweep", str(micro_file), "--seed", "0,1", "--dry-run", *sets)
    assert result.code == 0, result.err
    for adapter in micro_suite()["adapters"]:
        for seed in (0, 1):
            assert f"runs/micro/{adapter}/default/seed{seed}" in result.out
    assert list(here.iterdir()) == []


def test_overrides_reach_the_plan(harness: Any, micro_file: Path):
    result = harness("run", str(micro_file), "--adapter", "opd", "--set", "training.steps=7", "--dry-run")
    (line,) = [line for line in result.out.splitlines() if "training steps" in line]
    assert line.split("│")[2].strip() == "14"


def test_tasks_are_listed(harness: Any):
    result = harness("tasks")
    assert result.code == 0
    for name in ("tiny_arithmetic", "tiny_weather", "gsm8k", "toolalpaca"):
        assert name in result.out


def test_checking_a_good_task_succeeds_and_a_broken_one_fails(harness: Any, tmp_path: Path):
    good = harness("tasks", "check", "tiny_weather")
    assert good.code == 0
    assert "tiny_weather: grader passes, 0 traps" in good.out
    write_task(tmp_path / "mine", grader='return {"strict": 1.0, "parsed": 1.0}')
    bad = harness("tasks", "check", "made_up", "--include-path", str(tmp_path / "mine"))
    assert bad.code == 1
    assert "made_up: grader FAILS" in bad.out


def refused(harness: Any, *arguments: str) -> str:
    result = harness(*arguments)
    assert result.code == 2, result.out
    assert result.out.strip() == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    return result.err


def test_mistakes_are_one_line_on_stderr(harness: Any, here: Path, micro_file: Path, tmp_path: Path):
    suite = str(micro_file)
    broken = {**micro_suite(), "trainig": {}}
    cases = {
        "there is no suite 'tinny'; known are": ("run", "tinny", "--adapter", "opd"),
        "suite file no.yaml does not exist": ("run", "no.yaml", "--adapter", "opd"),
        "trainig: unknown key; did you mean 'training'?": (
            "run", str(write_yaml(tmp_path / "broken.yaml", broken)), "--adapter", "opd",
        ),
        "suite micro has no adapter aodp; did you mean 'aopd'? it has opd, aopd": ("run", suite, "--adapter", "aodp"),
        "none; add the installed one with --set adapters.gkd={}": ("run", suite, "--adapter", "gkd"),
        "order 'x' is not one of default": ("run", suite, "--adapter", "opd", "--order", "x"),
        "--set steps: expected KEY=VALUE": ("run", suite, "--adapter", "opd", "--set", "steps"),
        "adapters.opd.options.wieght: unknown key; did you mean 'weight'?": (
            "run", suite, "--adapter", "opd", "--set", "adapters.opd.options.wieght=1",
        ),
        "adapters.opd: needs a teacher (sampled)": ("run", suite, "--adapter", "opd", "--set", "teacher=null"),
        "task folder nowhere does not exist": ("tasks", "check", "tiny_weather", "--include-path", "nowhere"),
        "checkpoint nowhere is not a folder": ("evaluate", "--suite", suite, "--checkpoints", "nowhere"),
        "device is cuda, but torch sees no GPU": (
            "run", suite, "--adapter", "opd", "--set", "device=cuda", "--out", str(tmp_path / "gpu"),
        ),
    }  # fmt: skip
    for sentence, arguments in cases.items():
        if "cuda" in sentence and _has_gpu():
            continue
        assert sentence in refused(harness, *arguments)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def test_a_seed_that_is_not_a_number_is_one_line(harness: Any, micro_file: Path):
    assert "--seed 0,one: " in refused(harness, "sweep", str(micro_file), "--seed", "0,one")


def test_workers_of_this_machine_are_refused_with_a_cluster(harness: Any, micro_file: Path):
    assert "--workers limits" in refused(harness, "sweep", str(micro_file), "--ray", "auto", "--workers", "2")


def test_square_brackets_in_a_message_are_shown_as_they_are(harness: Any):
    assert "'no[bold]such:cat:'" in refused(harness, "run", "no[bold]such:cat:", "--adapter", "opd")
    assert "[/x].yaml does not exist" in refused(harness, "run", "[/x].yaml", "--adapter", "opd")


def test_the_installed_command_prints_no_traceback(here: Path):
    command = [str(Path(sys.executable).parent / "harness"), "run", "tinny", "--adapter", "opd"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.match(r"error: .*'tinny'; .*\btiny\b", done.stderr)
    assert done.stderr.count("\n") == 1


def test_help_names_every_command(harness: Any):
    result = harness("--help")
    assert result.code == 0
    for command in ("run", "sweep", "report", "evaluate", "tasks"):
        assert command in result.out


@pytest.mark.usefixtures("blank_figures")
def test_a_run_reports_at_its_end_and_again_says_that_all_is_done(
    harness: Any, here: Path, micro_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HARNESS_CACHE", str(cache))
    report = here / "runs" / "micro" / "report"
    without = harness("run", str(micro_file), "--adapter", "none", "--seed", "1", "--no-report")
    assert without.code == 0, without.err
    assert not report.exists()
    assert "harness report runs/micro" in without.out
    first = harness("run", str(micro_file), "--adapter", "none")
    assert first.code == 0, first.err
    assert (report / "report.html").is_file()
    assert (report / "report.md").is_file()
    assert "runs/micro/report/report.html" in first.out
    again = harness("run", str(micro_file), "--adapter", "none")
    assert again.code == 0
    assert "all 1 runs are finished" in again.out


def test_foreign_checkpoints_give_a_matrix(
    harness: Any, here: Path, micro_file: Path, student_folder: Path, teacher_folder: Path
):
    folders = [str(student_folder), str(teacher_folder)]
    result = harness("evaluate", "--suite", str(micro_file), "--checkpoints", *folders)
    assert result.code == 0, result.err
    unfolded = "".join(result.out.split()).replace("│", "")
    assert all(Path(folder).name in unfolded for folder in folders)
    assert (here / "runs/micro/checkpoints/matrix.csv").is_file()


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.slow
def test_a_command_that_imports_for_seconds_prints_a_line_first_on_a_terminal_and_nothing_into_a_pipe(
    command: str, here: Path
):
    arguments = [sys.executable, "-m", "harness.cli.app", command, "nowhere", *["other"][: command == "compare"]]
    piped = subprocess.run(arguments, capture_output=True, text=True, check=False)
    ours, terminal = os.openpty()
    subprocess.run(arguments, stdout=subprocess.PIPE, stderr=terminal, check=False)
    shown = os.read(ours, 4000).decode()
    os.close(terminal)
    os.close(ours)
    assert piped.stderr.startswith("error:")
    assert "error:" not in shown.splitlines()[0]
    assert "error:" in shown
