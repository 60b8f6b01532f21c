"""What an attack counts: how often it was tried, and how often something was lost, changed, silent or a traceback."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

BAD = ("lost", "changed", "silent", "traceback")


@dataclass
class Outcomes:
    """The results of one attack by kind; `details` holds a line for each bad one, `note` what else was measured."""

    attack: str
    counted: str
    counts: Counter[str] = field(default_factory=Counter[str])
    details: list[str] = field(default_factory=list[str])
    note: str = ""

    def add(self, result: str, detail: str = "") -> None:
        """Count one result; `detail` is kept where it is a bad one."""
        self.counts[result] += 1
        if result in BAD:
            self.details.append(f"{result}: {detail}")

    @property
    def tried(self) -> int:
        """How many attacks were tried."""
        return sum(self.counts.values())

    @property
    def bad(self) -> int:
        """How many of them ended badly."""
        return sum(self.counts[kind] for kind in BAD)

    @property
    def cells(self) -> list[str]:
        """The row of a table: attack, tried, lost, changed, silent, tracebacks, how it was counted."""
        numbers = [self.tried, *(self.counts[kind] for kind in BAD)]
        return [self.attack, *map(str, numbers), " ".join([self.counted, self.note]).strip()]


HEADER = ("attack", "tried", "lost", "changed", "silent", "tracebacks", "how it is counted")


def as_table(found: list[Outcomes]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(outcomes.cells for outcomes in found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
