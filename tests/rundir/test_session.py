"""What a session records: a command that can be pasted, and a diff of any bytes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.rundir.process import session


def test_the_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch):
    words = ["harness", "run", "my suite.yaml", "--out", "o'brien's", "--set", "name=a b"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/harness", *words[1:]])
    assert shlex.split(session.this_session().command) == words


def test_a_diff_that_is_not_utf_8_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "harness" / "rundir" / "process"
    package.mkdir(parents=True)
    (package / "session.py").write_bytes(b"before\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    (package / "session.py").write_bytes(b"caf\xe9\n")
    monkeypatch.setattr(session, "__file__", str(package / "session.py"))
    found = session.this_session().git
    assert found.dirty
    assert "+caf\N{REPLACEMENT CHARACTER}" in (found.diff or "")


def test_a_checkout_is_recorded_with_its_commit():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("these tests do not run from a checkout")
    assert session.this_session().git.commit == head.stdout.strip()
