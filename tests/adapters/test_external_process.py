"""The process of a user's command: how its end is reported, and that no process of it is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.trainers import external_process
from adapters.trainers.external import External
from adapters.trainers.external_results import ReturnedSteps
from tests.support.external_commands import python, refused, stage


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_process, "POLL_SECONDS", 0.05)


def test_a_failing_command_says_how_it_ended_what_it_said_last_and_where_the_rest_is(tmp_path: Path):
    code = "import sys; print('loading'); sys.exit('no such dataset')"
    sentence = refused(python(code), stage(tmp_path))
    log = tmp_path / "external" / "output.log"
    assert sentence.startswith(f"the command {sys.executable} -c ")
    assert re.search(r"exit code 1; .*'no such dataset'", sentence)
    assert sentence.endswith(str(log))
    assert log.read_text().splitlines() == ["loading", "no such dataset"]


def test_a_killed_command_is_distinguished_from_a_failing_one(tmp_path: Path):
    sentence = refused(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), stage(tmp_path))
    assert "was ended by signal 9 (Killed)" in sentence


def test_when_the_harness_is_interrupted_the_command_ends_too(tmp_path: Path):
    code = "import os, sys, time; open(sys.argv[1], 'w').write('{\"pid\": %d}\\n' % os.getpid()); time.sleep(60)"
    pids: list[int] = []

    def interrupt(line: dict[str, Any]) -> None:
        pids.append(line["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        python(code, "{steps}").train_stage(replace(stage(tmp_path), log=interrupt))
    assert not Path(f"/proc/{pids[0]}").exists()


def test_an_interrupt_ends_what_the_command_started_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "child"
    code = (
        "import subprocess as s, sys, time; p = s.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(f'{p.pid}\\n'); \
time.sleep(600)"
    )

    def interrupting(self: ReturnedSteps, whole: bool = False) -> None:
        if file.is_file() and file.read_text().endswith("\n"):
            raise KeyboardInterrupt

    monkeypatch.setattr(ReturnedSteps, "pass_on", interrupting)
    with pytest.raises(KeyboardInterrupt):
        python(code, str(file)).train_stage(stage(tmp_path))
    assert _gone(int(file.read_text()))


KILLED = """
import sys
from pathlib import Path
from adapters.trainers.external_process import run_command
run_command([sys.executable, "-c", sys.argv[1], sys.argv[2]], Path(sys.argv[2] + ".log"), lambda whole=False: None)
"""


def test_the_command_ends_when_the_harness_is_killed(tmp_path: Path):
    file = tmp_path / "pid"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    harness = subprocess.Popen([sys.executable, "-c", KILLED, code, str(file)])
    # Its children are the command and what watches over it.
    while not (file.is_file() and file.read_text().endswith("\n") and len(psutil.Process(harness.pid).children()) == 2):
        assert harness.poll() is None
        time.sleep(0.1)
    harness.kill()
    harness.wait()
    assert _gone(int(file.read_text()))


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path):
    file = tmp_path / "child"
    code = "import subprocess as s, sys; open(sys.argv[1], 'w').write(str(s.Popen(['sleep', '600']).pid))"
    external_process.run_command([sys.executable, "-c", code, str(file)], tmp_path / "log", lambda **_: None)
    assert _gone(int(file.read_text()))


def test_every_attempt_has_an_output_of_its_own(tmp_path: Path):
    outputs = [
        _output_of(python("import sys; print(sys.argv[2]); sys.exit(1)", "{checkpoint}"), tmp_path) for _ in range(2)
    ]
    assert len(set(outputs)) == 2


def _output_of(adapter: External, folder: Path) -> str:
    refused(adapter, stage(folder))
    return (folder / "external" / "output.log").read_text().strip()


def _gone(pid: int) -> bool:
    """Whether a process ends within some seconds; a zombie, whose parent has not waited for it yet, has ended."""
    for _ in range(1200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_program_that_disappears_later_is_named(tmp_path: Path):
    sentence = refused(External(command=("./no-such-program", "{output}")), stage(tmp_path))
    assert "./no-such-program" in sentence
    assert "cannot be started" in sentence
