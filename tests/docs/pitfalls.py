"""Write `docs/pitfalls.md` from the `pitfall` markers of the tests: `make pitfalls`.

The markers are read from the source, without importing a test: `@pytest.mark.pitfall(title, area=..., guard=...,
evidence=...)` names a way to get wrong numbers, what the harness does about it, and the change of the code that made
the marked test fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "pitfalls.md"
AREAS = ("lm-eval", "vLLM", "ToolAlpaca", "Grading", "Scale", "Small machines")
HEAD = """# Pitfalls and their guards

Each row is a way in which lm-eval, vLLM, a data set, a grader or a small machine gives wrong numbers or a useless
error. The guard is what the harness does about it, and a test protects the guard: the last column names a change of
the code with which the test failed. The rows are the `pitfall` markers of the tests; `make pitfalls` writes this page.
"""
COLUMNS = ("pitfall", "guard", "test", "the test fails when")


@dataclass(frozen=True)
class Pitfall:
    """One marker: the arguments in the words of its author, and the test that carries it."""

    title: str
    area: str
    guard: str
    evidence: str
    file: str
    test: str


def write_page() -> None:
    """Write the page."""
    PAGE.write_text(render_page(read_pitfalls()), encoding="utf-8")


def read_pitfalls() -> list[Pitfall]:
    """Return the markers of all tests, sorted by area, file and line."""
    found = [pitfall for file in sorted(TESTS.rglob("test_*.py")) for pitfall in read_markers(file)]
    return sorted(found, key=lambda pitfall: AREAS.index(pitfall.area))


def read_markers(file: Path) -> Iterator[Pitfall]:
    """Yield the markers of a file in the order of its lines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for marker in function.decorator_list:
            if isinstance(marker, ast.Call) and ast.unparse(marker.func) == "pytest.mark.pitfall":
                values = {word.arg or "": ast.literal_eval(word.value) for word in marker.keywords}
                (title,) = [ast.literal_eval(argument) for argument in marker.args]
                yield Pitfall(title, **values, file=file.relative_to(ROOT).as_posix(), test=function.name)


def render_page(pitfalls: Sequence[Pitfall]) -> str:
    """Return the page: one table for each area."""
    parts = [HEAD]
    for area in AREAS:
        rows = [
            _row(entry.title, entry.guard, f"[{entry.test}](../{entry.file})", entry.evidence)
            for entry in pitfalls
            if entry.area == area
        ]
        parts.append("\n".join([f"## {area}", _row(*COLUMNS), _row(*["---"] * len(COLUMNS)), *rows, ""]))
    return "\n".join(parts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write_page()
