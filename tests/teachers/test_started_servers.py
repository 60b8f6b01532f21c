"""Servers that the harness starts: on the GPUs that a suite names, started again when they end, gone with the harness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import ValidationError

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError
from harness.pipeline.processes.started_servers import started_servers
from harness.pipeline.processes.started_teachers import gpus_of_teachers, started_teachers
from harness.pipeline.run import run
from harness.rundir.process.progress import Event, silent
from harness.teachers.server import Server
from harness.teachers.server_start import ServerStart
from tests.support.models import micro_suite
from tests.support.processes import started_by
from tests.support.runs import steps

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / "support/servers/health_server.py")]
KILLED = """
from pathlib import Path; import sys, time
from harness.pipeline.processes.started_servers import started_servers
from harness.teachers.server_start import ServerStart
if __name__ == "__main__":
    with started_servers(ServerStart(command=tuple(sys.argv[2:])), "m", "", 8, Path(sys.argv[1]), print) as (url,):
        print(url, flush=True)
        time.sleep(600)
"""


def start(**settings: Any) -> ServerStart:
    return ServerStart.model_validate({"command": PROGRAM, "deadline": 60, **settings})


def process_at(url: str) -> int:
    return int(httpx.get(f"{url}/health", trust_env=False).text)


def until(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def answers(url: str) -> bool:
    try:
        return process_at(url) > 0
    except httpx.HTTPError:
        return False


def test_a_replica_for_each_entry_of_gpus_and_one_that_ends_is_started_again(tmp_path: Path):
    warnings: list[str] = []
    asked = start(gpus=[6, "4,5"], restarts=1)
    with started_servers(asked, "big", "r1", 32, tmp_path, warnings.append) as urls:
        first, second = map(process_at, urls)
        assert first != second
        assert (tmp_path / "server_1.txt").read_text().split()[:4] == ["big", "big", "32", "6"]
        assert (tmp_path / "server_2.txt").read_text().split()[3] == "4,5"
        os.kill(first, signal.SIGKILL)
        assert until(lambda: answers(urls[0]) and process_at(urls[0]) != first)
        assert process_at(urls[1]) == second
        assert until(lambda: len(warnings) == 1)
        os.kill(process_at(urls[0]), signal.SIGKILL)
        assert until(lambda: len(warnings) == 2)
        assert "not started again" in warnings[1]
        assert not answers(urls[0])
    assert until(lambda: not psutil.pid_exists(second))


@pytest.mark.parametrize(
    ("settings", "says"), [({"options": ["--fail"]}, "out of memory"), ({"command": ["/no/such"]}, "No such")]
)
def test_a_server_that_does_not_start_ends_the_command_with_its_own_words(
    settings: dict[str, Any], says: str, tmp_path: Path
):
    with pytest.raises(RunError, match=says), started_servers(start(**settings), "big", "", 8, tmp_path, print):
        pass


def test_servers_end_with_a_harness_that_is_killed(tmp_path: Path):
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    command = [sys.executable, str(program), str(tmp_path), *PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        server = process_at(harness.stdout.readline().strip())
        harness.kill()
    assert until(lambda: not psutil.pid_exists(server))


def suite(**teacher: Any) -> Suite:
    raw = {**micro_suite(), "adapters": {"opd": {}, "none": {}}}
    raw["teacher"] = {
        "kind": "server",
        "model": "big",
        "start": {"command": PROGRAM, "gpus": [6], "deadline": 60},
        **teacher,
    }
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    return Suite.model_validate(raw)


def test_all_runs_of_a_command_share_the_servers_and_know_their_addresses(tmp_path: Path):
    mine = suite()
    specs = [RunSpec(mine, entry, seed, out=tmp_path) for seed in (0, 1) for entry in ("opd", "none")]
    with started_teachers(specs, silent) as started:
        teachers = [spec.suite.teacher for spec in started]
        assert all(isinstance(teacher, Server) for teacher in teachers)
        assert len({teacher.urls for teacher in teachers if isinstance(teacher, Server) and teacher.urls}) == 1
        # The control needs no teacher.
        assert [bool(teacher.urls) for teacher in teachers if isinstance(teacher, Server)] == [True, False, True, False]
        assert [spec.config_hash for spec in started] == [spec.config_hash for spec in specs]
    assert gpus_of_teachers(mine) == {"6"}


def test_a_teacher_behind_a_cache_or_a_route_is_started_too_and_where_it_is_served_is_no_part_of_a_run(tmp_path: Path):
    server = {"kind": "server", "model": "big", "start": {"command": PROGRAM, "gpus": [6]}}
    other = {"kind": "server", "model": "big", "urls": ["http://node:8000"]}
    cached = [{"kind": "cache", "path": str(tmp_path / "scores.db"), "of": of} for of in (server, other)]
    for one, two in (cached, [{"kind": "routed", "by_task": {"a.b": of}} for of in (server, other)]):
        first, second = (Suite.model_validate({**suite().model_dump(), "teacher": teacher}) for teacher in (one, two))
        assert gpus_of_teachers(first) == {"6"}
        assert RunSpec(first, "opd", 0).config_hash == RunSpec(second, "opd", 0).config_hash


@pytest.mark.parametrize("given", [{}, {"urls": ["http://node:8000"], "start": {}}])
def test_addresses_and_a_start_exclude_each_other(given: dict[str, Any]):
    with pytest.raises(ValidationError, match="urls"):
        Server.model_validate({"kind": "server", "model": "big", **given})


@pytest.mark.slow
def test_a_run_goes_on_with_a_server_that_was_killed_and_started_again(
    micro: Suite, teacher_folder: Path, tmp_path: Path
):
    started = {
        "command": [sys.executable, "-m", "tests.support.servers.fake_serve"],
        "path": str(teacher_folder),
        "deadline": 900,
    }
    teacher = {"kind": "server", "model": "teacher", "max_logprobs": 32, "start": started}
    mine = Suite.model_validate({**micro.model_dump(), "teacher": teacher})
    killed: list[str] = []
    warnings: list[str] = []

    def kill_once(event: Event) -> None:
        if event.activity.startswith("stage 1") and not killed:
            (server,) = started_by(psutil.Process(), "tests.support.servers.fake_serve")
            killed.append(event.activity)
            server.kill()
        if event.warning:
            warnings.append(event.activity)

    local, served = (
        RunSpec(each, "aopd", 0, out=tmp_path / name) for name, each in (("local", micro), ("served", mine))
    )
    run(local)
    run(served, kill_once)
    assert killed
    assert any("started again" in warning for warning in warnings)
    for line, expected in zip(steps(served.path), steps(local.path), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-5)
