"""All checks in the order in which they are reported, and the functions that run them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from adapters.conformance import credit, direction, faults, gate, gradients, masks, options, repeat
from adapters.conformance.outcome import Check, Outcome, outcome_of
from adapters.conformance.subject import Subject
from harness.adapter import Adapter

CHECKS: dict[str, Check] = {
    "options are frozen": options.are_frozen,
    "options are described": options.are_described,
    "options refuse unknown keys": options.refuse_unknown_keys,
    "options are read back": options.are_read_back,
    "trains": repeat.trains,
    "same seed, same weights": repeat.repeats_with_its_seed,
    "resume": repeat.resumes,
    "gradient": gradients.equals_autograd,
    "accumulation": gradients.accumulates,
    "masks": masks.masks_are_exact,
    "no detached branch": gradients.no_branch_is_detached,
    "expected gradient": direction.expects_a_gradient,
    "direction": direction.follows_its_objective,
    "teacher = student": direction.rests_at_the_teacher,
    "credit": credit.raises_what_it_credits,
    "limits of the gate": gate.has_its_limits,
    "advantage zero": gate.routes_advantage_zero,
    "empty and cut responses": faults.survives_empty_and_cut_responses,
    "vocabulary": faults.refuses_other_vocabularies,
    "teacher NaN": faults.refuses_nan,
    "teacher zeros": faults.refuses_silent_zeros,
    "failed request": faults.refuses_a_failed_request,
}


def check_adapter(adapter: Adapter, checks: Iterable[str] = CHECKS) -> Iterator[Outcome]:
    """Yield the outcome of each named check of an adapter."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        subject = Subject(adapter, Path(folder))
        for name in checks:
            yield outcome_of(name, CHECKS[name], subject)


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes of checks that failed."""
    return [outcome for outcome in outcomes if outcome.result == "fails"]
