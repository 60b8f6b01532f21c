"""Run one check, and describe its outcome: it passes, fails, does not apply, or is skipped for a missing library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import HarnessError

if TYPE_CHECKING:
    from adapters.conformance.small_stage import AdapterUnderTest


Result = Literal["passes", "fails", "does not apply", "skipped"]
Check = Callable[["AdapterUnderTest"], None]


class ConformanceError(HarnessError, AssertionError):
    """Raised where an adapter breaks a promise; the sentence says what was found, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818
    """Raised where a check does not apply to an adapter; the sentence says why."""


class NotInstalled(DoesNotApply):
    """Raised where an adapter cannot run, because a library that it needs is not installed."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check of an adapter; `sentence` is the finding, or the promise that a passed check confirms."""

    check: str
    result: Result
    sentence: str


def run_check(name: str, check: Check, subject: AdapterUnderTest) -> Outcome:
    """Run a check and return its outcome; an unexpected error is a failure, but a missing library is not."""
    try:
        check(subject)
    except NotInstalled as reason:
        return Outcome(name, "skipped", _one_line(reason))
    except DoesNotApply as reason:
        return Outcome(name, "does not apply", _one_line(reason))
    except ImportError as error:
        return Outcome(name, "skipped", f"{_one_line(error)}; install the extra that brings it")
    except ConformanceError as failure:
        return Outcome(name, "fails", _one_line(failure))
    except Exception as error:
        return Outcome(name, "fails", f"the stage raised {type(error).__name__}: {_one_line(error)}")
    return Outcome(name, "passes", promise(check))


def promise(check: Check) -> str:
    """Return what an adapter promises under a check: the first line of the check's docstring."""
    return (check.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
