"""Whether two methods learned equally, and what each kept where they did: a method that learns less has less to forget."""

from __future__ import annotations

from harness.stats.intervals import Interval, has_width

FEWEST_SEEDS = 3
MARGIN = 0.05  # a share, of learning accuracy
MATCHED, ON_AVERAGE, UNMATCHED = "matched", "matched on average only", "unmatched"


def how_matched(learned: Interval, margin: float = MARGIN) -> str:
    """Return whether the whole interval of a difference in learning lies within the margin, or only its mean does.

    An interval over fewer than three seeds, or without width because all seeds differ alike, matches nothing.
    """
    if has_width(learned, FEWEST_SEEDS) and learned.low >= -margin and learned.high <= margin:
        return MATCHED
    return ON_AVERAGE if abs(learned.mean) <= margin else UNMATCHED
