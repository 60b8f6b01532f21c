"""Requests to servers: what is retried and for how long, and what the user hears of it."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Semaphore, Thread
from typing import Any, ClassVar

import pytest

from harness.errors import TrainingError
from harness.lm import outages
from harness.lm.replicas import Patience, Replicas, WrongAnswersError
from tests.support.servers.fake_server import serving


class Scripted:
    """Answers with the statuses that are told, one after the other, and then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.requests = list(statuses), 0

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.requests += 1
        status = self.statuses.pop(0) if self.statuses else 200
        return status, {"path": path} if status == 200 else {"error": {"message": "No such folder"}}


@contextmanager
def asking(server: Scripted, deadline: float = 300.0) -> Generator[Replicas]:
    with serving(server) as url:
        replicas = Replicas((url,), Patience(60.0, deadline, longest_pause=0.01), 4)
        yield replicas
        replicas.close()


def paths(replicas: Replicas, count: int) -> list[str]:
    return replicas.post_all("/score", [{}] * count, lambda _, answer: answer["path"])


def test_a_command_that_fails_at_the_server_ends_after_few_tries_while_outages_and_requests_for_scores_are_retried():
    server = Scripted(*[503] * 12, 500, 502, 500)
    with asking(server) as replicas:
        replicas.command(replicas.urls[0], "/take", {})
        assert server.requests == 16
        server.statuses = [500] * 40
        assert paths(replicas, 1) == ["/score"]
        assert server.requests == 57
        server.statuses = [500] * 1000
        with pytest.raises(WrongAnswersError, match="status 500 No such folder") as caught:
            replicas.command(replicas.urls[0], "/take", {})
    assert caught.value.last == "status 500 No such folder"
    elsewhere = pickle.loads(pickle.dumps(caught.value))  # a sweep's worker hands its error to the sweep so
    assert (str(elsewhere), elsewhere.last) == (str(caught.value), caught.value.last)
    assert str(type(elsewhere)(str(elsewhere))) == str(elsewhere)
    assert server.requests == 57 + replicas.patience.wrong_answers
    with asking(Scripted(500), deadline=0.0) as replicas, pytest.raises(WrongAnswersError, match="status 500"):
        replicas.command(replicas.urls[0], "/take", {})


def test_an_outage_is_one_warning_when_its_first_request_is_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    server = Scripted(*[503] * 20)
    with asking(server) as replicas, caplog.at_level(logging.WARNING):
        assert paths(replicas, 8) == ["/score"] * 8
        (record,) = caplog.records
        said = record.getMessage()
        assert replicas.urls[0] in said
        assert all(part in said for part in ("status 503 No such folder", "teacher", "300 seconds"))
        server.statuses = [503]
        paths(replicas, 1)
        assert len(caplog.records) == 1, "failures within a minute are one outage"
        monkeypatch.setattr(outages, "QUIET", 0.0)
        paths(replicas, 1)
        server.statuses = [429]
        paths(replicas, 1)
        assert "status 429" in caplog.records[1].getMessage()
    with asking(Scripted(503), deadline=0.0) as replicas, caplog.at_level(logging.WARNING):
        with pytest.raises(TrainingError, match="503"):
            paths(replicas, 1)
        assert len(caplog.records) == 2, "an error without another try is no warning too"


def test_an_outage_begins_again_after_an_answer_and_a_minute_without_failures(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0, 10, 40, 100, 3600, 3700])  # the times of the failures
    monkeypatch.setattr(outages.time, "monotonic", lambda: next(clock))
    seen = outages.Outages()
    begun = [seen.begin("a"), seen.begin("a")]
    seen.answered("a")
    begun += [seen.begin("a"), seen.begin("a")]  # the second one is a minute later, but nothing was answered since
    seen.answered("a")
    assert [*begun, seen.begin("a"), seen.begin("a")] == [True, False, False, False, True, False]


class Stuck(BaseHTTPRequestHandler):
    """Never answers `/never`, asks `/later` to come back in an hour, and refuses any other request once both are there."""

    protocol_version = "HTTP/1.1"
    arrived: ClassVar[Semaphore] = Semaphore(0)
    ended: ClassVar[Event] = Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/never":
            self.arrived.release()
            self.ended.wait()
            self.close_connection = True
            return
        if self.path == "/refused":
            for _ in range(2):
                self.arrived.acquire()
        self.send_response(503 if self.path == "/later" else 400)
        self.send_header("retry-after", "3600")
        self.send_header("content-length", "0")
        self.end_headers()
        if self.path == "/later":
            self.arrived.release()

    def log_message(self, format: str, *args: Any) -> None:
        pass


ASKS = """
import sys
from harness.lm.replicas import Patience, Replicas

replicas = Replicas((sys.argv[1],), Patience(timeout=120.0, deadline=3600.0, longest_pause=120.0), 3)
def asking(path):
    return lambda url: replicas.ask(url, path, {})
try:
    replicas.all_in_turn([asking(path) for path in ("/refused", "/never", "/later")])
finally:
    replicas.close()
"""


def test_a_process_ends_with_its_error_and_not_with_the_requests_that_are_in_flight_or_wait():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stuck)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-c", ASKS, f"http://127.0.0.1:{server.server_address[1]}"]
    begun = time.monotonic()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    finally:
        Stuck.ended.set()
        server.shutdown()
        server.server_close()
    assert time.monotonic() - begun < 60
    assert "refused the request with status 400" in ended.stderr.splitlines()[-1]
    assert "/never" not in ended.stderr, "a request that was ended by `close` is no outage"
