"""What a manifest records of overlap between training and test prompts, as `harness.lmeval.overlap` counts it.

It needs no tasks and no models, so that reports read it without loading any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

NGRAM = 13
TEMPLATE = 10
OVERLAP_HEADER = (
    "trained in",
    "training items",
    "test task",
    "test items",
    "exact",
    "13-gram hits",
    "mean share %",
    "too short",
)


@dataclass(frozen=True)
class OverlapRow:
    """One training set against one test set; counts are test items.

    - `exact`: their whole prompt is trained on.
    - `ngram_items`: at least one n-gram of their own is. `ngram_share_mean`: the mean share of these items' n-grams that
      are, 0..1: near 1 where an item, or a long text in it, is trained on, small where it shares a phrase.
    - `too_short`: they have no n-gram of their own and are compared whole only.
    """

    source: str
    trained_task: str
    test_task: str
    training_items: int
    test_items: int
    exact: int
    ngram_items: int
    ngram_share_mean: float
    too_short: int

    @property
    def found(self) -> bool:
        """Whether anything of the test set is trained on."""
        return self.exact > 0 or self.ngram_items > 0

    @property
    def cells(self) -> list[str]:
        """The row as readers see it, under `OVERLAP_HEADER`."""
        place = f"{self.source} {self.trained_task}"
        counts = [self.test_items, self.exact, self.ngram_items]
        share = f"{100 * self.ngram_share_mean:.1f}"
        return [place, str(self.training_items), self.test_task, *map(str, counts), share, str(self.too_short)]


@dataclass(frozen=True)
class Overlap:
    """All comparisons of a run, and a digest of each split's documents: equal ones mean equal items on two machines."""

    rows: tuple[OverlapRow, ...]
    digests: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> Self:
        """Return what `as_dict` wrote."""
        return cls(tuple(OverlapRow(**row) for row in recorded["rows"]), tuple(recorded["digests"].items()))

    def as_dict(self) -> dict[str, Any]:
        """Return what the manifest records."""
        rows = [asdict(row) for row in self.rows]
        return {"ngram": NGRAM, "template": TEMPLATE, "digests": dict(self.digests), "rows": rows}

    @property
    def found(self) -> list[OverlapRow]:
        """The comparisons in which anything of a test set is trained on."""
        return [row for row in self.rows if row.found]

    @property
    def warning(self) -> str | None:
        """One sentence that names the test prompts that are trained on word for word, or None."""
        exact = [row for row in self.rows if row.exact]
        named = [f"{r.exact} of {r.test_items} of {r.test_task} in {r.source} {r.trained_task}" for r in exact[:3]]
        more = f" and {len(exact) - 3} more" if len(exact) > 3 else ""
        sentence = (
            f"Test prompts are also training prompts ({', '.join(named)}{more}), where none was expected: scores on them "
            "measure memory; take these items out of one of the splits, or do not read their scores as learning."
        )
        return sentence if exact else None

    @property
    def summary(self) -> str:
        """The warning, or one sentence that says what was compared."""
        items = sum(row.test_items for row in self.rows)
        short = 100 * sum(row.too_short for row in self.rows) / max(1, items)
        return self.warning or (
            f"No training prompt occurs in a test set (comparisons: {len(self.rows)}; {len(self.found)} share "
            f"{NGRAM}-grams, for which {short:.0f} % of the test items are too short)."
        )
