"""Whether two methods learned equally; if they did not, their retention cannot be compared."""

from __future__ import annotations

from harness.stats.intervals import Interval, has_width
from harness.stats.looks import FEWEST_SEEDS

MARGIN = 0.05  # a share, of learning accuracy
MATCHED, ON_AVERAGE, UNMATCHED = "matched", "matched on average only", "unmatched"


def how_matched(learned: Interval, margin: float = MARGIN) -> str:
    """Return MATCHED if the interval of a difference in learning is within ±margin, ON_AVERAGE if only its mean is.

    Anything else is UNMATCHED. An interval over fewer than FEWEST_SEEDS seeds, or without width, is never MATCHED.
    """
    if has_width(learned, FEWEST_SEEDS) and learned.low >= -margin and learned.high <= margin:
        return MATCHED
    return ON_AVERAGE if abs(learned.mean) <= margin else UNMATCHED
