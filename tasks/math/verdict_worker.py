r"""The process that asks math-verify: a JSON line in with `gold`, `answer` and `seconds`, `true` or `false` out.

A script that `verdicts.py` starts; it imports nothing of ours and ends when its input does. A question that takes longer
than its `seconds` ends the whole process through the kernel's timer, which waits neither for Python nor for the parent:
whatever happens to the parent, nothing goes on calculating.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO

from math_verify.grader import verify
from math_verify.parser import LatexExtractionConfig, parse
from sympy import Expr

MEMORY_BYTES = 2 << 30
WAITING = 12  # times the allowed processor time may pass on the clock
SMALL = 1e-5
# A box that does not hold LaTeX is compared as text: no number or formula is searched for around it.
BOX_ONLY = [LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]


def main() -> None:
    """Answer questions until the input ends."""
    _prepare()
    equal(r"\frac{1}{2}", "3")  # The first parse builds tables, which no question's time should pay for.
    replies = _own_output()
    for line in sys.stdin:
        question = json.loads(line)
        # Processor time, so that the verdict does not depend on what else runs; the wall clock ends one that only waits.
        signal.setitimer(signal.ITIMER_PROF, question["seconds"])
        signal.setitimer(signal.ITIMER_REAL, WAITING * question["seconds"])
        verdict = equal(question["gold"], question["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


def equal(gold: str, answer: str) -> bool:
    """Return math-verify's verdict, the reference parsed and given first; its own timeouts are off.

    It rounds to six decimal places, to which all small numbers are 0, and takes some fractions of huge numbers for equal, so
    numbers have to agree in their ratio as well.
    """
    reference, given = _parsed(gold), _parsed(answer)
    if not verify(reference, given, timeout_seconds=0):
        return False
    # Percentages stand for two values each, and sympy does not finish to evaluate them.
    return "%" in gold + answer or not _are_different_numbers(reference, given)


def _are_different_numbers(reference: list[Any], given: list[Any]) -> bool:
    first = [
        parsed[0] for parsed in (reference, given) if parsed and isinstance(parsed[0], Expr) and parsed[0].is_number
    ]
    if len(first) < 2:
        return False
    one, other = (abs(number.evalf()) for number in first)
    if not (one.is_finite and other.is_finite):
        return False
    apart, size = abs(one - other), max(one, other)
    return bool(apart > SMALL * size and (size < SMALL or apart > SMALL))


def _parsed(text: str) -> list[Any]:
    return parse(rf"\boxed{{{text}}}", BOX_ONLY, parsing_timeout=0)


def _prepare() -> None:
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles an interrupt, and ends this process with it.
    for name in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGPROF})
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > MEMORY_BYTES:
        with suppress(ValueError, OSError):  # macOS has the limit and refuses to set it
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, most))


def _own_output() -> TextIO:
    """Return the output for replies alone; what libraries print or warn goes nowhere from here on."""
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


if __name__ == "__main__":
    main()
