"""Send requests to the replicas of a server: spread over them, limited in number, and repeated after failures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from harness.errors import TrainingError
from harness.lm.completions import AnswerError

Result = TypeVar("Result")
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
SHOWN = 200  # characters of a server's own message
log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """A server that does not answer now: no connection, no time, or one of the statuses in BUSY."""

    def __init__(self, sentence: str, wait: float = 0.0) -> None:
        super().__init__(sentence)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How long one request may take: seconds of one try, seconds of all tries, and how many wrong answers are accepted."""

    timeout: float = 120.0
    deadline: float = 900.0
    wrong_answers: int = 5
    longest_pause: float = 30.0


@dataclass
class Replicas:
    """Servers of one model by address; `concurrency` requests are in flight at each. `role` is what messages call them."""

    urls: tuple[str, ...]
    patience: Patience
    concurrency: int = 8
    headers: Mapping[str, str] = field(default_factory=dict)
    role: str = "teacher"

    def __post_init__(self) -> None:
        workers = self.concurrency * len(self.urls)
        self._client = httpx.Client(
            timeout=self.patience.timeout, headers=dict(self.headers), trust_env=False,
            limits=httpx.Limits(max_connections=workers, max_keepalive_connections=workers),
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=self.role)

    def post_all(self, path: str, bodies: Sequence[Any], read: Callable[[Any, Any], Result]) -> list[Result]:
        """Return `read(body, answer)` of each body, in order; a failed try goes on at the next replica.

        `read` raises `AnswerError` for an answer that must be asked for again. Raises `TrainingError` when patience ends.
        """
        return self.all_in_turn([self._asking(path, body, read) for body in bodies])

    def post(self, path: str, body: Any, read: Callable[[Any, Any], Result], first: int = 0) -> Result:
        """Return `read(body, answer)` of one body, asked at replica `first`, and after a failure at the next ones."""
        return self.in_turn(self._asking(path, body, read), first)

    def all_in_turn(self, attempts: Sequence[Callable[[str], Result]]) -> list[Result]:
        """Return what each attempt returns at the address of a replica, in order; see `in_turn`."""
        asked = [self._pool.submit(self.in_turn, attempt, number) for number, attempt in enumerate(attempts)]
        try:
            return [future.result() for future in asked]
        finally:
            for future in asked:
                future.cancel()

    def in_turn(self, attempt: Callable[[str], Result], first: int = 0) -> Result:
        """Return what `attempt` returns at replica `first`, or after a failure at one of the next.

        It raises `AnswerError` for an answer that must be asked for again. Raises `TrainingError` when patience ends.
        """
        tries, wrong = count(first), count(1)

        def once() -> Result:
            url = self.urls[next(tries) % len(self.urls)]
            try:
                return attempt(url)
            except AnswerError as error:
                log.warning("%s: %s", url, error)
                if next(wrong) < self.patience.wrong_answers:
                    raise
                raise TrainingError(
                    f"the {self.role} gave {self.patience.wrong_answers} wrong answers to one request, the last one at {url}: "
                    f"{error}; look at the server's log, then the same command continues from the last snapshot"
                ) from error

        return self._patiently(once)

    def ask(self, url: str, path: str, body: Any) -> Any:
        """Return the JSON that one replica answers at once; raises `AnswerError`, `UnavailableError` or `TrainingError`."""
        return self._send("POST", url + path, body)

    def get(self, url: str, path: str) -> Any:
        """Return the JSON at a path of one replica."""
        return self._patiently(lambda: self._send("GET", url + path))

    def command(self, url: str, path: str, body: Any) -> None:
        """Send a command whose answer may be empty to one replica."""

        def attempt() -> None:
            with suppress(AnswerError):
                self._send("POST", url + path, body)

        self._patiently(attempt)

    def close(self) -> None:
        """Close the connections; a request that is still being asked for again ends with them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _asking(self, path: str, body: Any, read: Callable[[Any, Any], Result]) -> Callable[[str], Result]:
        return lambda url: read(body, self.ask(url, path, body))

    def _patiently(self, attempt: Callable[[], Result]) -> Result:
        pause = wait_random_exponential(multiplier=0.25, max=self.patience.longest_pause)

        def wait(state: RetryCallState) -> float:
            asked = getattr(state.outcome and state.outcome.exception(), "wait", 0.0)
            return max(pause(state), min(asked, self.patience.longest_pause))

        def give_up(state: RetryCallState) -> Any:
            error = state.outcome and state.outcome.exception()
            raise TrainingError(
                f"the {self.role} did not answer within {self.patience.deadline:g} seconds and {state.attempt_number} tries "
                f"({error}); start its server again, then the same command continues from the last snapshot"
            ) from error

        again = retry_if_exception_type((UnavailableError, AnswerError))
        stop = stop_after_delay(self.patience.deadline)
        return Retrying(retry=again, wait=wait, stop=stop, retry_error_callback=give_up)(attempt)

    def _send(self, method: str, url: str, body: Any = None) -> Any:
        try:
            response = self._client.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url}: {type(error).__name__} {error}".strip()) from error
        if response.status_code in BUSY:
            raise UnavailableError(f"{url}: status {response.status_code} {_message(response)}", _retry_after(response))
        if response.status_code >= 400:
            raise TrainingError(
                f"the {self.role} at {url} refused the request with status {response.status_code}: {_message(response)}"
            )
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise AnswerError(f"the answer is not JSON ({len(response.content)} bytes)") from error


def _message(response: httpx.Response) -> str:
    """Return a server's own sentence."""
    text = response.text
    try:
        found = json.loads(text)
        text = str(found.get("error", {}).get("message") or found.get("message") or found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:SHOWN]


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
