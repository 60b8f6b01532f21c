"""Commands and reporters by entry point: a package adds its own, and a broken or missing one leaves the others working."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.aopd import AOPD
from harness.cli.commands import OWN
from harness.cli.reporters import Reporters, ReportsOnTheWay
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.rundir.process.progress import Event

MODULE = '''"""Commands of another package."""

import typer

group = typer.Typer(help="A group of commands from outside.")


@group.command()
def one() -> None:
    """First."""
    print("one of a group")


@group.command()
def two() -> None:
    """Second."""


def greet(name: str = "you") -> None:
    """Greet somebody."""
    print(f"good morning, {name}")
'''


def package(folder: Path, module: str, entry_points: str) -> None:
    """Write a package as pip leaves one installed: a module and the metadata that registers its entry points."""
    (folder / "outside.py").write_text(module, encoding="utf-8")
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def harness(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call the command line with a package on the path."""
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120", **variables}
    command = [sys.executable, "-m", "harness.cli.app", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_a_package_adds_a_command_and_a_group_of_commands(tmp_path: Path):
    package(tmp_path, MODULE, "[harness.commands]\ngreet = outside:greet\nmany = outside:group\n")
    listed = harness(tmp_path, "--help")
    assert listed.returncode == 0, listed.stderr
    assert "Greet somebody." in listed.stdout
    assert "A group of commands from outside." in listed.stdout
    assert harness(tmp_path, "greet", "--name", "Ada").stdout == "good morning, Ada\n"
    assert harness(tmp_path, "many", "one").stdout == "one of a group\n"


def test_a_command_that_cannot_be_loaded_says_so_and_leaves_the_others(tmp_path: Path):
    package(tmp_path, "raise RuntimeError('no licence')", "[harness.commands]\nbroken = outside:broken\n")
    listed = harness(tmp_path, "--help")
    assert listed.returncode == 0, listed.stderr
    assert {"broken", "compare", *OWN} <= set(listed.stdout.replace("│", " ").split())
    called = harness(tmp_path, "broken")
    assert called.returncode == 2
    assert re.match("error: command broken: .*outside:broken", called.stderr)
    assert "no licence" in called.stderr
    assert called.stderr.count("\n") == 1


def test_a_package_cannot_replace_a_command_of_the_harness(tmp_path: Path):
    package(tmp_path, MODULE, "[harness.commands]\nrun = outside:greet\n")
    assert "Adapt a student stage by stage" in " ".join(harness(tmp_path, "run", "--help").stdout.split())


def test_h_version_and_completion_work(tmp_path: Path):
    assert harness(tmp_path, "run", "-h").stdout == harness(tmp_path, "run", "--help").stdout
    assert harness(tmp_path, "--version").stdout.startswith("harness ")
    # The shell is named here; at a prompt it is the one that called.
    shown = harness(tmp_path, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0, shown.stderr


@pytest.fixture
def specs(tmp_path: Path, micro_file: Path) -> list[RunSpec]:
    return [RunSpec(load_suite(str(micro_file)), "none", 0, "default", tmp_path / "runs")]


def test_without_a_reporter_the_runs_are_done_and_the_command_says_that_nothing_renders_them(
    specs: list[RunSpec], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("harness.cli.reporters.entry_points", lambda **_: [])
    reporters = Reporters(Console(width=200))
    reporters.render(specs)
    assert capsys.readouterr().out == ""
    reporters.summarise(specs)
    assert "harness.reporters" in capsys.readouterr().out


def test_a_reporter_of_another_package_is_called(
    specs: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = "def summarise(console, specs):\n    console.print(f'{len(specs)} runs seen')\n"
    package(tmp_path, module, "[harness.reporters]\noutside = outside\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("harness.cli.reporters.entry_points", _only(tmp_path))
    Reporters(Console(width=200)).summarise(specs)
    assert capsys.readouterr().out == "1 runs seen\n"


def test_the_first_report_comes_when_every_method_has_a_stage_and_others_after_runs_but_the_last(
    specs: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    package(
        tmp_path,
        "def render(specs):\n    print('rendered')\n",
        "[harness.reporters]\noutside_render = outside_render\n",
    )
    (tmp_path / "outside.py").rename(tmp_path / "outside_render.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("harness.cli.reporters.entry_points", _only(tmp_path))
    first = specs[0]
    other = replace(first, entry="opd")
    shown: list[Event] = []
    hours: list[int] = []  # what the clock says; 0 at the end
    monkeypatch.setattr("harness.cli.reporters.time.monotonic", lambda: 3600.0 * (hours.pop(0) if hours else 0))
    reports = ReportsOnTheWay(shown.append, Reporters(Console()), [first, other])

    def after(*events: Event) -> int:
        for event in events:
            reports(event)
        return capsys.readouterr().out.count("rendered")

    assert after(Event(first.label, "evaluated start"), Event(other.label, "evaluated start")) == 0
    assert after(Event(first.label, "evaluated", evaluated=1), Event(first.label, "evaluated", evaluated=2)) == 0
    assert after(Event(other.label, "stage 1"), Event(other.label, "evaluated", evaluated=1)) == 1
    assert after(Event(other.label, "evaluated", evaluated=2)) == 0
    reports.after_run(first)
    assert after() == 1
    reports.after_run(other)
    assert after() == 0
    assert len(shown) == 7
    # A report that took an hour is young for 19 hours.
    hours.extend([0, 1, 19, 20, 20, 21])
    reports = ReportsOnTheWay(shown.append, Reporters(Console()), [first, first, first, other], [first, first, first])
    assert after(Event(first.label, "evaluated", evaluated=1)) == 1
    reports.after_run(first)
    assert after() == 0
    reports.after_run(first)
    assert after() == 1
    # A method whose runs were finished before is not waited for.
    reports = ReportsOnTheWay(shown.append, Reporters(Console()), [first, other], [other])
    assert after(Event(other.label, "evaluated", evaluated=3)) == 1
    # A reporter that fails early is named, and events go on.
    reports = ReportsOnTheWay(shown.append, Reporters(Console()), [first])
    monkeypatch.setattr(Reporters, "render", lambda *_: {}["task"])
    assert after(Event(first.label, "evaluated", evaluated=1)) == 0
    assert shown[-1].warning
    assert "KeyError: 'task'" in shown[-1].activity


def _only(folder: Path) -> Any:
    from importlib.metadata import PathDistribution

    points = PathDistribution(folder / "outside-1.0.dist-info").entry_points
    return lambda group: points.select(group=group)


def test_an_unforeseen_error_is_one_sentence_and_its_traceback_is_in_a_file(tmp_path: Path):
    module = "def fall() -> None:\n    raise ZeroDivisionError('by [bold]nought[/bold]')\n"
    package(tmp_path, module, "[harness.commands]\nfall = outside:fall\n")
    done = harness(tmp_path, "fall")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ZeroDivisionError: by [bold]nought[/bold]")
    assert done.stderr.count("\n") == 1
    (log,) = re.findall(r"the traceback is in (\S+\.log)", done.stderr)
    text = Path(log).read_text(encoding="utf-8")
    Path(log).unlink()
    assert "Traceback (most recent call last)" in text
    assert "outside.py" in text
    assert "outside.py, line 2, " in done.stderr, "not a fault of the harness"


@pytest.mark.slow
def test_one_adapter_is_shown_with_the_meaning_of_its_options(tmp_path: Path):
    shown = harness(tmp_path, "adapters", "show", "aopd")
    assert shown.returncode == 0, shown.stderr
    fields = AOPD.model_fields.items()
    words = " ".join(shown.stdout.split())
    assert all(f"{name}:" in words and " ".join((field.description or "").split()) in words for name, field in fields)
    narrow = harness(tmp_path, "adapters", "show", "aopd", COLUMNS="50").stdout.partition("options:\n")[2].splitlines()
    assert max(map(len, narrow)) <= 50
    indents = {len(line) - len(line.lstrip()) for line in narrow}
    assert indents == {2, 6}, "a line that is broken keeps its indent"
    unknown = harness(tmp_path, "adapters", "show", "aodp")
    assert unknown.returncode == 2
    assert "did you mean 'aopd'?" in unknown.stderr


def test_suites_are_listed_with_what_they_are(tmp_path: Path):
    listed = harness(tmp_path, "suites")
    assert listed.returncode == 0, listed.stderr
    assert {"tiny", "gsm8k-toolalpaca"} <= set(listed.stdout.split())
