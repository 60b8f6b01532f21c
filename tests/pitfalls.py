"""The pitfalls that the harness guards against, as data (`pitfalls.yaml`), and the page that lists them.

Each entry names the guard, a test, and the mutation that takes the guard out; `tests.mutations` tries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).with_name("pitfalls.yaml")
PAGE = ROOT / "docs" / "pitfalls.md"
HEAD = """# Pitfalls, their guards, and what happens without them

Each row is a way in which lm-eval, vLLM, a data set, a grader or a small machine gives wrong numbers or a useless
error. The guard is what the harness does about it. The mutation was tried: with it in place of the guard, the test
failed as the last column says. `make mutations` tries all of them again and writes this page; the data are in
[tests/pitfalls.yaml](../tests/pitfalls.yaml).
"""
COLUMNS = ("pitfall", "guard", "test", "mutation", "without the guard the test fails with")


class Strict(BaseModel):
    """A value as the file gives it; a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Edit(Strict):
    """One change of a file: `find` stands there exactly once."""

    file: str
    find: str
    replace: str


class Pitfall(Strict):
    """One pitfall; `tried` says in words what `mutation` does, `marker` what the test needs."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    area: str
    pitfall: str
    guard: str
    test: str
    marker: str | None = None
    tried: str
    mutation: tuple[Edit, ...] = Field(min_length=1)


def read_pitfalls() -> list[Pitfall]:
    """Return all entries in the file's order."""
    found = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return [Pitfall.model_validate(entry) for entry in found]


def render(pitfalls: Sequence[Pitfall], failures: Mapping[str, str]) -> str:
    """Return the page; `failures` holds, by an entry's name, the `cell` of what its test failed with."""
    parts = [HEAD]
    for area, entries in groupby(pitfalls, key=lambda entry: entry.area):
        rows = [f"{row(entry)}{failures[entry.name]} |" for entry in entries]
        parts.append("\n".join([f"## {area}", _line(COLUMNS), _line(["---"] * len(COLUMNS)), *rows, ""]))
    return "\n".join(parts)


def row(entry: Pitfall) -> str:
    """Return an entry's row up to its last column, which only a run can fill."""
    where, _, name = entry.test.partition("::")
    test = f"[{name}](../{where})" + (f" ({entry.marker})" if entry.marker else "")
    return f"{_line([entry.pitfall, entry.guard, test, entry.tried])} "


def failures_on(page: str, pitfalls: Sequence[Pitfall]) -> dict[str, str]:
    """Return what a page says of the entries whose rows are as they would be written now."""
    lines = page.splitlines()
    found = {entry.name: [line for line in lines if line.startswith(row(entry))] for entry in pitfalls}
    return {
        entry.name: found[entry.name][0].removeprefix(row(entry)).removesuffix(" |")
        for entry in pitfalls
        if found[entry.name]
    }


def cell(text: str) -> str:
    """Return text as code in a table's cell."""
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
