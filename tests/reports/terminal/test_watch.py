"""The live view of runs: a run's state is read from its files while another process writes them."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from harness.rundir.reader import RunDir, find_runs
from harness.rundir.store import RunStore
from reports.terminal.watch import clock, show_until_finished, status, view
from tests.support.reports.run_factory import write_run


def only_run(root: Path) -> RunDir:
    (run,) = find_runs([root])
    return run


def with_steps(run: Path, steps: int = 10) -> None:
    """Note in the manifest how many steps each stage takes, as the pipeline does."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["stages"] = [{**stage, "steps": steps} for stage in manifest["stages"]]
    file.write_text(json.dumps(manifest))


def finish_training(run: Path, stage: str) -> None:
    (run / stage / "train" / "done.json").write_text('{"steps": 4}')


def shown(root: Path) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(view([status(run) for run in find_runs([root])]))
    return text.getvalue()


def test_a_run_in_its_first_evaluation_is_at_the_start(tmp_path: Path):
    with_steps(write_run(tmp_path, evaluated=1))
    found = status(only_run(tmp_path))
    assert (found.activity, found.done, found.total, found.seconds_left) == ("evaluate the start", 0, 0, None)


def test_a_run_in_a_stage_shows_steps_time_left_and_figures(tmp_path: Path):
    run = write_run(tmp_path, evaluated=4, logged={"reward_mean": 0.5, "warnings": ["truncation"]})
    with_steps(run)
    found = status(only_run(tmp_path))
    assert (found.activity, found.done, found.total) == ("stage 1 tiny_arithmetic", 4, 10)
    assert found.seconds_left == 6.0  # Six steps of one second.
    assert found.figures == {
        "entropy": pytest.approx([1, 0.9, 0.8, 0.7]),
        "reward_mean": [0.5] * 4,
        "teacher_agreement": [],
    }
    assert found.warnings == 4
    assert not found.finished


def test_a_run_that_nobody_works_on_is_stopped_and_continues_by_the_same_command(tmp_path: Path):
    run = write_run(tmp_path, evaluated=4)
    with_steps(run)
    later = time.time() + 12 * 60
    found = status(only_run(tmp_path), later)
    assert found.stopped
    assert re.fullmatch("stage 1 tiny_arithmetic: stopped 12 min ago, .*same command .*", found.activity)
    assert found.seconds_left is None
    assert "stopped" in " ".join(Text.from_markup(narrow(view([found]))).plain.split())
    with RunStore(run).locked():  # another process is at work, however long it has written nothing
        assert not status(only_run(tmp_path), later).stopped
    assert not status(only_run(tmp_path)).stopped  # written a moment ago


def narrow(what: object) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(what)
    return text.getvalue()


def test_a_trained_stage_is_being_evaluated_and_then_the_next_begins(tmp_path: Path):
    run = write_run(tmp_path, evaluated=4)
    finish_training(run, "stage_1_tiny_arithmetic")
    assert status(only_run(tmp_path)).activity == "evaluate after tiny_arithmetic"
    other = write_run(tmp_path / "more", evaluated=6)
    finish_training(other, "stage_1_tiny_arithmetic")
    assert status(only_run(tmp_path / "more")).activity == "begin stage 2"


def test_a_step_done_again_after_a_kill_counts_once(tmp_path: Path):
    run = write_run(tmp_path, evaluated=4)
    log = run / "stage_1_tiny_arithmetic" / "train" / "steps.jsonl"
    again = {**json.loads(log.read_text().splitlines()[-1]), "entropy": 0.25}
    log.write_text(log.read_text() + json.dumps(again) + "\n" + '{"step": 4, "entr')
    found = status(only_run(tmp_path))
    assert found.done == 4
    assert found.figures["entropy"][-1] == 0.25


def test_the_view_has_a_line_per_run(tmp_path: Path):
    write_run(tmp_path, "aopd")
    with_steps(write_run(tmp_path, "opd", evaluated=4))
    text = shown(tmp_path)
    aopd, opd = (next(line for line in text.splitlines() if name in line) for name in ("tiny aopd", "tiny opd"))
    assert "finished" in aopd
    assert "ago" not in aopd
    assert "4/10" in opd
    assert "0:06" in opd
    assert {"█▆▃▁", "0.7"} <= set(opd.split())
    assert "reward" not in text


def test_watching_ends_when_the_last_run_does(tmp_path: Path):
    run = write_run(tmp_path, evaluated=4)
    text = io.StringIO()
    watcher = threading.Thread(target=show_until_finished, args=(Console(file=text, width=200), [tmp_path], 0.05))
    watcher.start()
    time.sleep(0.3)
    assert watcher.is_alive()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json.new").write_text(json.dumps({**manifest, "finished": "2026-01-02T04:04:05+00:00"}))
    (run / "manifest.json.new").replace(run / "manifest.json")
    watcher.join(timeout=30)
    assert not watcher.is_alive()
    assert "finished" in text.getvalue()


def test_a_single_look_is_a_whole_table_with_its_last_line_ended(tmp_path: Path):
    write_run(tmp_path, evaluated=4)
    text = io.StringIO()
    show_until_finished(Console(file=text, width=200), [tmp_path], once=True)
    assert text.getvalue().endswith("┘\n")


@pytest.mark.parametrize(("seconds", "written"), [(0.2, "0:00"), (61, "1:01"), (3723, "1:02:03"), (-1, "0:00")])
def test_times_are_written_as_clocks(seconds: float, written: str):
    assert clock(seconds) == written


def test_watch_waits_for_the_first_run_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    monkeypatch.setattr("reports.terminal.watch.time.sleep", lambda _: write_run(tmp_path, "opd"))
    show_until_finished(console, [tmp_path])
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "No run has started" in text
    assert "finished" in text
