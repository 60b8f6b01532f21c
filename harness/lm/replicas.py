"""Send requests to the replicas of a server: spread over them, limited in number, and retried after failures."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_all,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    wait_random_exponential,
)

from harness.errors import ConfigError, TrainingError
from harness.lm.completions import AnswerError
from harness.lm.connections import Connections
from harness.lm.outages import Outages

Result = TypeVar("Result")
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # HTTP statuses
FAILED = 500
LONGEST_CONNECT = 30.0  # seconds; `close` cannot wake a thread that still connects
QUOTED_CHARACTERS = 200  # characters of a server's error message
log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """A server that cannot answer now: no connection, a timeout, or a status in RETRIED; `wait` is its Retry-After in s."""

    def __init__(self, url: str, found: str, wait: float = 0.0) -> None:
        super().__init__(f"{url}: {found}")
        self.found, self.wait = found, wait


class FailedError(UnavailableError):
    """A server that failed at a request: status 500."""


class WrongAnswersError(TrainingError):
    """A server whose answers to one request were wrong too often; `last` says what was wrong with the last one."""

    def __init__(self, sentence: str, last: str = "") -> None:  # other processes make it again from its sentence
        super().__init__(sentence)
        self.last = last


@dataclass(frozen=True)
class Patience:
    """How long a request is retried, in seconds; the `wrong_answers`-th malformed answer ends it too."""

    timeout: float = 120.0  # of one try
    deadline: float = 900.0  # of all tries
    wrong_answers: int = 5
    longest_pause: float = 30.0  # between two tries


@dataclass
class Replicas:
    """Servers of one model; up to `concurrency` requests are in flight at each. Error messages call them `role`."""

    urls: tuple[str, ...]
    patience: Patience
    concurrency: int = 8
    headers: Mapping[str, str] = field(default_factory=dict)
    role: str = "teacher"

    def __post_init__(self) -> None:
        workers = self.concurrency * len(self.urls)
        limit = self.patience.timeout
        self._client = httpx.Client(
            timeout=httpx.Timeout(limit, connect=min(limit, LONGEST_CONNECT)), headers=dict(self.headers), trust_env=False,
            limits=httpx.Limits(max_connections=workers, max_keepalive_connections=workers),
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=self.role)
        self._outages, self._connections, self._closed = Outages(), Connections(), threading.Event()

    def post_all(self, path: str, bodies: Sequence[Any], read: Callable[[Any, Any], Result]) -> list[Result]:
        """Return `read(body, answer)` for each body, in order; a failed try continues at the next replica.

        `read` raises `AnswerError` for an answer that must be requested again. Raises `TrainingError` if the retries end, or
        if a server refuses a request.
        """
        return self.all_in_turn([self._asking(path, body, read) for body in bodies])

    def post(self, path: str, body: Any, read: Callable[[Any, Any], Result], first: int = 0) -> Result:
        """Return `read(body, answer)` for one body, sent to replica `first` and after failures to the next ones."""
        return self.in_turn(self._asking(path, body, read), first)

    def all_in_turn(self, attempts: Sequence[Callable[[str], Result]]) -> list[Result]:
        """Return the result of each attempt, in order; an attempt gets the address of a replica, see `in_turn`."""
        requests = [self._pool.submit(self.in_turn, attempt, number) for number, attempt in enumerate(attempts)]
        try:
            return [request.result() for request in requests]
        finally:
            for request in requests:
                request.cancel()

    def in_turn(self, attempt: Callable[[str], Result], first: int = 0) -> Result:
        """Return the result of `attempt` with the address of replica `first`, or after failures of one of the next.

        `attempt` raises `AnswerError` for an answer that must be requested again. Raises `TrainingError` if the retries end,
        or if a server refuses a request.
        """
        tries = count(first)
        return self._retry(attempt, lambda: self.urls[next(tries) % len(self.urls)])

    def ask(self, url: str, path: str, body: Any) -> Any:
        """Return one replica's JSON answer without retries; raises `AnswerError`, `UnavailableError` or `TrainingError`."""
        return _json(self._send("POST", url + path, body))

    def get(self, url: str, path: str) -> Any:
        """Return the JSON at a path of one replica."""
        return self._retry(lambda each: _json(self._send("GET", each + path)), lambda: url)

    def command(self, url: str, path: str, body: Any) -> None:
        """Send a command to one replica and ignore its answer, which may be empty; see `inquire`."""
        self._command(url, path, body, lambda _: None)

    def inquire(self, url: str, path: str, body: Any, read: Callable[[Any], Result]) -> Result:
        """Return `read(answer)` for a command to one replica.

        A status 500 is a wrong answer: a command that the server cannot carry out does not succeed later. Raises
        `WrongAnswersError` for too many of them.
        """
        return self._command(url, path, body, lambda response: read(_json(response)))

    def close(self) -> None:
        """Close the connections, which ends all requests: those in flight, and those that wait for their next try.

        Else their threads, which Python joins at its end, would keep the process alive until the requests time out.
        """
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._connections.end()
        self._client.close()

    def _command(self, url: str, path: str, body: Any, read: Callable[[httpx.Response], Result]) -> Result:
        def attempt(each: str) -> Result:
            try:
                return read(self._send("POST", each + path, body))
            except FailedError as error:
                raise AnswerError(error.found) from error

        return self._retry(attempt, lambda: url)

    def _asking(self, path: str, body: Any, read: Callable[[Any, Any], Result]) -> Callable[[str], Result]:
        return lambda url: read(body, self.ask(url, path, body))

    def _retry(self, attempt: Callable[[str], Result], choose: Callable[[], str]) -> Result:
        """Return the result of `attempt` with an address of `choose`, which is called for each try."""
        pause, wrong, url = wait_random_exponential(multiplier=0.25, max=self.patience.longest_pause), 0, ""

        def once() -> Result:
            nonlocal url, wrong
            url = choose()
            try:
                result = attempt(url)
            except AnswerError as error:
                log.warning("%s: %s", url, error)
                wrong += 1
                if wrong < self.patience.wrong_answers:
                    raise
                raise self._wrong_answers(wrong, url, error) from error
            self._outages.answered(url)
            return result

        def wait(state: RetryCallState) -> float:
            requested = getattr(state.outcome and state.outcome.exception(), "wait", 0.0)
            return max(pause(state), min(requested, self.patience.longest_pause))

        def warn(state: RetryCallState) -> None:
            error = state.outcome and state.outcome.exception()
            if isinstance(error, UnavailableError) and self._outages.begin(url):
                log.warning("%s; the %s is asked again for up to %g seconds", error, self.role, self.patience.deadline)

        def give_up(state: RetryCallState) -> Any:
            error = state.outcome and state.outcome.exception()
            if isinstance(error, AnswerError):
                raise self._wrong_answers(wrong, url, error) from error
            raise TrainingError(
                f"the {self.role} did not answer within {self.patience.deadline:g} seconds and {state.attempt_number} tries "
                f"({error}); start its server again, then run the same command again to continue from the last snapshot"
            ) from error

        again = retry_all(retry_if_exception_type((UnavailableError, AnswerError)), lambda _: not self._closed.is_set())
        stop, sleep = stop_after_delay(self.patience.deadline), sleep_using_event(self._closed)
        return Retrying(
            retry=again, wait=wait, stop=stop, sleep=sleep, before_sleep=warn, retry_error_callback=give_up
        )(once)

    def _wrong_answers(self, number: int, url: str, last: AnswerError) -> WrongAnswersError:
        answers = "a wrong answer" if number == 1 else f"{number} wrong answers"
        return WrongAnswersError(
            f"the {self.role} gave {answers} to one request, the last one at {url}: {last}; check the server's log, then run "
            "the same command again to continue from the last snapshot",
            str(last),
        )

    def _send(self, method: str, url: str, body: Any = None) -> httpx.Response:
        try:
            response = self._client.request(method, url, json=body, extensions={"trace": self._connections.note})
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"{url} is not a URL ({error}); give {self.role} an address like http://host:8000"
            ) from error
        except httpx.HTTPError as error:
            raise UnavailableError(url, f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in RETRIED:
            kind = FailedError if response.status_code == FAILED else UnavailableError
            raise kind(url, f"status {response.status_code} {_message(response)}".strip(), _retry_after(response))
        if response.status_code >= 400:
            raise TrainingError(
                f"the {self.role} at {url} refused the request with status {response.status_code}: {_message(response)}"
            )
        return response


def _json(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise AnswerError(f"the answer is not JSON ({len(response.content)} bytes)") from error


def _message(response: httpx.Response) -> str:
    """Return a server's error message, or else the text of its answer, on one line."""
    text = response.text
    with suppress(ValueError, AttributeError):
        answer = json.loads(text)
        text = str(answer.get("error", {}).get("message") or answer.get("message") or answer)
    return " ".join(text.split())[:QUOTED_CHARACTERS]


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
