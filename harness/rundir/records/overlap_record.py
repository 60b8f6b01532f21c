"""The manifest's record of training prompts that occur in test sets, and the sentence about them for readers.

`harness.lmeval.overlap` compares the prompts.
"""

from __future__ import annotations

from pydantic import Field

from harness.config.base import Record

NGRAM = 13  # words
TEMPLATE = 10  # an n-gram of more training prompts than this is a template
ROWS = 50  # comparisons with a row of their own in a manifest
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


class OverlapRow(Record):
    """The comparison of one training set with one test set; counts are test items."""

    source: str = Field(description="when the set is trained on: `stage 1`, `warm-up`, `before the start`")
    trained_task: str = Field(description="the task of the training set")
    test_task: str = Field(description="the task of the test set")
    training_items: int = Field(description="items of the training set")
    test_items: int = Field(description="items of the test set")
    exact: int = Field(description="test items whose whole prompt is trained on")
    ngram_items: int = Field(description="test items of which at least one n-gram of their own is trained on")
    ngram_share_mean: float = Field(
        description="mean share, 0..1, of these items' n-grams that are trained on: near 1 where an item, or a long text in "
        "it, is trained on, small where it shares a phrase"
    )
    too_short: int = Field(description="test items without an n-gram of their own, which are compared whole only")

    @property
    def found(self) -> bool:
        """Whether anything of the test set is trained on."""
        return self.exact > 0 or self.ngram_items > 0

    @property
    def cells(self) -> list[str]:
        """The row as texts, under `OVERLAP_HEADER`."""
        place = f"{self.source} {self.trained_task}"
        counts = [self.test_items, self.exact, self.ngram_items]
        share = f"{100 * self.ngram_share_mean:.1f}"
        return [place, str(self.training_items), self.test_task, *map(str, counts), share, str(self.too_short)]


class Unlisted(Record):
    """Counts of the comparisons that have no row of their own, so that a manifest grows with the stages, not their square."""

    comparisons: int = Field(default=0, description="comparisons without a row")
    found: int = Field(default=0, description="how many of them share n-grams or whole prompts")
    exact: int = Field(default=0, description="how many of them share whole prompts")
    test_items: int = Field(default=0, description="their test items")
    too_short: int = Field(default=0, description="their test items without an n-gram of their own")


class Overlap(Record):
    """All comparisons of a run; equal digests mean equal items, also between machines."""

    ngram: int = Field(default=NGRAM, description="words of an n-gram")
    template: int = Field(
        default=TEMPLATE, description="an n-gram in more training prompts than this is a template, and ignored"
    )
    digests: dict[str, str] = Field(default={}, description="digest of the documents of each split")
    rows: tuple[OverlapRow, ...] = Field(
        description="comparisons of a training set with a test set; at most 50, those that found most"
    )
    unlisted: Unlisted = Field(default=Unlisted(), description="counts of the other comparisons")

    def condensed(self) -> Overlap:
        """Return the record with rows for the ROWS comparisons that found most, in order, and counts of the rest."""
        found = sorted(self.found, key=lambda row: (-row.exact, -row.ngram_items))[:ROWS]
        rows = tuple(row for row in self.rows if row in found)
        rest = [row for row in self.rows if row not in found]
        unlisted = Unlisted(
            comparisons=self.unlisted.comparisons + len(rest),
            found=self.unlisted.found + sum(row.found for row in rest),
            exact=self.unlisted.exact + sum(row.exact > 0 for row in rest),
            test_items=self.unlisted.test_items + sum(row.test_items for row in rest),
            too_short=self.unlisted.too_short + sum(row.too_short for row in rest),
        )
        return self.model_copy(update={"rows": rows, "unlisted": unlisted})

    @property
    def found(self) -> list[OverlapRow]:
        """The comparisons in which anything of a test set is trained on."""
        return [row for row in self.rows if row.found]

    @property
    def warning(self) -> str | None:
        """One sentence that names the test prompts that are trained on word for word, or None."""
        exact = [row for row in self.rows if row.exact]
        named = [f"{r.exact} of {r.test_items} of {r.test_task} in {r.source} {r.trained_task}" for r in exact[:3]]
        count = len(exact) + self.unlisted.exact
        more = f" and {count - 3} more" if count > 3 else ""
        sentence = (
            f"Test prompts are also training prompts ({', '.join(named)}{more}), where none was expected: scores on them "
            "measure memory; take these items out of one of the splits, or do not read their scores as learning."
        )
        return sentence if exact else None

    @property
    def summary(self) -> str:
        """The warning, or one sentence that says what was compared."""
        items = self.unlisted.test_items + sum(row.test_items for row in self.rows)
        short = 100 * (self.unlisted.too_short + sum(row.too_short for row in self.rows)) / max(1, items)
        comparisons, sharing = len(self.rows) + self.unlisted.comparisons, len(self.found) + self.unlisted.found
        return self.warning or (
            f"No training prompt occurs in a test set (comparisons: {comparisons}; {sharing} share "
            f"{NGRAM}-grams, for which {short:.0f} % of the test items are too short)."
        )
