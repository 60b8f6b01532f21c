r"""Grading free-form math: the answer in the last box, compared with the reference by math-verify.

`strict` reads the last `\boxed{...}` or `\fbox{...}` and nothing else; an empty or unclosed one is not an answer, even after
a good one. `flexible` falls back on what follows the last "answer is" or "answer:" where there is no box at all. A number
that merely comes last is never taken. Equal texts are equal; all else is math-verify's verdict, the reference first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.answers import single_answer
from tasks.math.verdicts import SECONDS, same

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
WITHOUT_BRACES = re.compile(r"[^\s{}$]+")
ANSWER_IS = re.compile(r"\banswer(?:\s+is\s*:?|\s*:)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.\s|\n")


@dataclass(frozen=True)
class Grade:
    """What one answer is worth; `parsed` says that a box was found, `timed_out` that no verdict came in time."""

    strict: bool
    flexible: bool
    parsed: bool
    timed_out: bool


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Grade one answer against `doc["answer"]`; each field of `Grade` becomes a metric, 0 or 1."""
    return {name: float(value) for name, value in asdict(grade(single_answer(results), doc["answer"])).items()}


def grade(response: str, gold: str, seconds: float = SECONDS) -> Grade:
    """Grade a response against a reference in LaTeX; after `seconds` of wall-clock time the answer counts as wrong."""
    boxed = last_box(response)
    answer = stated_answer(response) if boxed is None else boxed
    if not answer:
        return Grade(strict=False, flexible=False, parsed=False, timed_out=False)
    equal = answer == gold.strip() or same(gold, answer, seconds)
    return Grade(bool(boxed and equal), bool(equal), bool(boxed), equal is None)


def last_box(text: str) -> str | None:
    r"""Return what is in a text's last box, "" for an empty or unclosed one, None where there is no box.

    `\boxed 5`, as LaTeX allows, holds what comes before the next space or `$`.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text.startswith("{", start):
        return _in_braces(text, start)
    bare = WITHOUT_BRACES.match(text, start)
    return bare[0].rstrip(".,;") if bare else ""


def stated_answer(text: str) -> str:
    """Return what a text says after its last "answer is" or "answer:", up to the sentence's end, or ""."""
    _, *stated = ANSWER_IS.split(text)
    if not stated:
        return ""
    return SENTENCE_END.split(stated[-1].lstrip(), maxsplit=1)[0].strip("*$.: \t")


def _in_braces(text: str, start: int) -> str:
    """Return the text between the brace at `start` and the one that closes it; escaped braces are the answer's own."""
    depth = 0
    for found in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0 and found[0] == "}":
            return text[start + 1 : found.start()].strip()
    return ""
