"""All checks, in the order in which they are reported, and the functions that run them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.conformance import contract, direction, faults, gate, gradients, masks, stale
from adapters.conformance.outcomes import Check, Outcome, run_check
from adapters.conformance.small_stage import AdapterUnderTest
from adapters.conformance.two_processes import trains_in_two_processes
from harness.adapter import Adapter

CHECKS: dict[str, Check] = {
    "options are frozen": contract.are_frozen,
    "options are described": contract.are_described,
    "options refuse unknown keys": contract.refuse_unknown_keys,
    "options are read back": contract.are_read_back,
    "trains": contract.trains,
    "same seed, same weights": contract.repeats_with_its_seed,
    "resume": contract.resumes,
    "gradient": gradients.equals_autograd,
    "accumulation": gradients.accumulates,
    "masks": masks.masks_are_exact,
    "no detached branch": gradients.no_branch_is_detached,
    "expected gradient": direction.expects_a_gradient,
    "direction": direction.follows_its_objective,
    "teacher = student": direction.rests_at_the_teacher,
    "stale responses": stale.takes_stale_responses,
    "credit": direction.raises_what_it_credits,
    "limits of the gate": gate.has_its_limits,
    "advantage zero": gate.routes_advantage_zero,
    "empty and cut responses": faults.survives_empty_and_cut_responses,
    "vocabulary": faults.refuses_other_vocabularies,
    "teacher NaN": faults.refuses_nan,
    "teacher zeros": faults.refuses_silent_zeros,
    "failed request": faults.refuses_a_failed_request,
}
# Starts processes, which takes longer than all other checks together.
IN_PROCESSES: dict[str, Check] = {"two processes": trains_in_two_processes}
EVERY = {**CHECKS, **IN_PROCESSES}


def check_adapter(
    adapter: Adapter, checks: Iterable[str] = CHECKS, training: Mapping[str, Any] | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of each named check of an adapter; `training` holds settings of its stages, such as `precision`."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        subject = AdapterUnderTest(adapter, Path(folder), training or {})
        for name in checks:
            yield run_check(name, EVERY[name], subject)


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes of checks that failed."""
    return [outcome for outcome in outcomes if outcome.result == "fails"]
