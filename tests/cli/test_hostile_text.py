"""Foreign text on a terminal: names, prompts and settings from files cannot send control codes or end a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness.cli.app import main
from harness.terminal.sanitize import show_hidden
from tests.support.models import write_task
from tests.support.reports.run_factory import write_run

EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m"
SHOWN = show_hidden("\x1b[2J\x9b31m")


def output(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Return what a command prints, on both streams."""
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        main()
    captured = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(captured.out + captured.err)
    return captured.out + captured.err


@pytest.mark.parametrize("command", ["watch {runs} --once", "compare {runs}/tiny/opd {runs}/tiny/aopd"])
def test_names_in_a_manifest_cannot_send_codes(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for adapter in ("opd", "aopd"):
        for seed in (0, 1):
            run = write_run(tmp_path / "runs", adapter, seed)
            manifest = json.loads((run / "manifest.json").read_text())
            (run / "manifest.json").write_text(json.dumps({**manifest, "adapter": adapter + EVIL}))
    text = output(capsys, monkeypatch, *command.format(runs=tmp_path / "runs").split())
    assert SHOWN in text


def test_settings_of_a_task_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write_task(tmp_path, metadata={"harness": {"metric": "strict", "capability": f"[/bold]{EVIL}"}})
    text = output(capsys, monkeypatch, "tasks", "--include-path", str(tmp_path))
    assert "[/bold]" in text
    assert SHOWN in text
    assert "made_up" in text


def test_prompts_and_targets_of_a_task_cannot_send_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    docs = [{"prompt": f"say {EVIL}{number}", "target": f"[/red]{number}"} for number in range(6)]
    write_task(tmp_path, docs={"train": docs, "test": docs})
    text = output(capsys, monkeypatch, "tasks", "check", "made_up", "--include-path", str(tmp_path))
    assert SHOWN in text


def test_an_error_cannot_send_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert "there is no suite" in output(capsys, monkeypatch, "run", f"no{EVIL}")
