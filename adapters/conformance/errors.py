"""How a check ends that does not pass."""

from __future__ import annotations

from harness.errors import HarnessError


class ConformanceError(HarnessError, AssertionError):
    """An adapter that breaks a promise: what was found, what was expected, what to do."""


class DoesNotApply(Exception):  # noqa: N818
    """A check that says nothing about this adapter, and why."""


class NotInstalled(DoesNotApply):
    """An adapter that cannot run here, because a library that it needs is missing."""
