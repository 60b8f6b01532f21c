"""The outcomes of a check: it passes, it fails with one sentence, it does not apply, or a library is not installed."""

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
    """An adapter that breaks a promise: what was found, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818
    """A check that says nothing about this adapter, and why."""


class NotInstalled(DoesNotApply):
    """An adapter that cannot run here, because a library that it needs is missing."""


@dataclass(frozen=True)
class Outcome:
    """One check of one adapter; `sentence` says what was found, or what a passed check promises."""

    check: str
    result: Result
    sentence: str


def run_check(name: str, check: Check, subject: AdapterUnderTest) -> Outcome:
    """Run a check; an error that it did not foresee is a failure, a library that is missing is not."""
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
    """Return what a check holds an adapter to: the first line of its docstring."""
    return (check.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
