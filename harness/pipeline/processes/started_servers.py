"""Servers of a teacher that the harness starts: they end with it, even when it is killed, and are restarted when one ends.

A keeper process between the harness and the servers does both: it ends when the harness ends, and ends the servers. Whether a
restarted server still serves the same teacher is checked by the probe in every request.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import httpx

from harness.engines.child_processes import end_group, free_ports
from harness.errors import RunError
from harness.pipeline.processes.end_with_parent import end_with_parent
from harness.pipeline.processes.stop_signals import SIGNALS
from harness.teachers.server_start import ServerStart

PAUSE = 0.2  # seconds between two checks of the servers
QUOTED_CHARACTERS = 600  # characters of a log's end that an error quotes


class Replica(NamedTuple):
    """One server: its command, what it adds to the harness's environment, and the file of its output."""

    command: list[str]
    environment: dict[str, str]
    log: Path


@contextmanager
def started_servers(
    start: ServerStart, model: str, revision: str, max_logprobs: int, folder: Path, warn: Callable[[str], None]
) -> Generator[tuple[str, ...]]:
    """Serve a model in this block and yield the servers' addresses; their output goes to `<folder>/server_<n>.txt`.

    `warn` takes a sentence whenever a server ends later. Raises `RunError` for a server that ends before it answers, with the
    end of its output, and for one that does not answer in time.
    """
    environments = start.environments()
    try:
        ports = free_ports(start.host, len(environments))
    except OSError as error:
        raise RunError(
            f"teacher.start.host is {start.host}, where this machine cannot listen ({error}); set it to an address of this "
            "machine, such as 127.0.0.1"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    commands = start.commands(model, revision, max_logprobs, ports)
    replicas = [
        Replica(command, environment, folder / f"server_{number}.txt")
        for number, (command, environment) in enumerate(zip(commands, environments, strict=True), start=1)
    ]
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    keeper = context.Process(target=_keep, args=(replicas, start.restarts, there), name="teacher servers")
    keeper.start()
    there.close()
    try:
        urls = tuple(f"http://{start.host}:{port}" for port in ports)
        _wait(urls, replicas, start.deadline, here)
        threading.Thread(target=_warn_of_ended, args=(here, replicas, warn), daemon=True).start()
        yield urls
    finally:
        with suppress(OSError):
            here.send("end")
        keeper.join()


def _wait(urls: Sequence[str], replicas: Sequence[Replica], deadline: float, keeper: Connection) -> None:
    keeper.send("no restarts")
    until, missing = time.monotonic() + deadline, list(urls)
    with httpx.Client(trust_env=False, timeout=5) as client:
        while missing:
            if keeper.poll():
                number, status, _ = keeper.recv()
                raise RunError(
                    f"the teacher's server {number + 1} ended with status {status} before it answered: "
                    f"{_end_of(replicas[number])}; correct teacher.start; all of its output is in {replicas[number].log}"
                )
            if time.monotonic() > until:
                number = urls.index(missing[0])
                raise RunError(
                    f"the teacher's server {number + 1} did not answer within {deadline:g} seconds; look at "
                    f"{replicas[number].log}, or raise teacher.start.deadline"
                )
            with suppress(httpx.HTTPError):
                if client.get(f"{missing[0]}/health").status_code == 200:
                    missing.pop(0)
                    continue
            time.sleep(PAUSE)
    keeper.send("restarts")


def _end_of(replica: Replica) -> str:
    text = replica.log.read_text(encoding="utf-8", errors="replace") if replica.log.is_file() else ""
    return " ".join(text[-QUOTED_CHARACTERS:].split()) or "it printed nothing"


def _warn_of_ended(keeper: Connection, replicas: Sequence[Replica], warn: Callable[[str], None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            number, status, left = keeper.recv()
            does = f"it is started again, {left} more times at most" if left >= 0 else "it is not started again"
            warn(f"the teacher's server {number + 1} ended with status {status} ({replicas[number].log}); {does}")


def _keep(replicas: Sequence[Replica], restarts: int, harness: Connection) -> None:
    """Start the servers, restart those that end, and end all of them with the harness; runs in the keeper process."""
    end_with_parent()
    for number in SIGNALS:  # the harness answers signals, and this process ends with it
        signal.signal(number, signal.SIG_IGN)
    running = {number: _start(replica) for number, replica in enumerate(replicas)}
    left, again = dict.fromkeys(running, restarts), True
    try:
        while True:
            if harness.poll(PAUSE):
                if (word := harness.recv()) == "end":
                    return
                again = word == "restarts"
            for number, process in list(running.items()):
                if (status := process.poll()) is None:
                    continue
                end_group(running.pop(number))
                left[number] -= 1
                harness.send((number, status, left[number]))
                if again and left[number] >= 0:
                    running[number] = _start(replicas[number])
    except (EOFError, OSError):
        return  # the harness is gone
    finally:
        for process in running.values():
            end_group(process)


def _start(replica: Replica) -> subprocess.Popen[bytes]:
    with replica.log.open("ab") as log:
        try:
            return subprocess.Popen(
                replica.command, env={**os.environ, **replica.environment}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            # A command that cannot be started counts as one that ends at once, with the reason in its output.
            return subprocess.Popen(["sh", "-c", 'echo "$0" >&2; exit 127', str(error)], stderr=log)
