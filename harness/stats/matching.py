"""Whether two methods learned equally, and what each kept where they did: a method that learns less has less to forget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.stats.intervals import NOTHING, Interval, has_width, t_interval

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


def at_matched_learning(differences: Sequence[Mapping[int, float]]) -> Interval:
    """Return the t interval over seeds of the mean over matched pairs; each pair is one difference by seed.

    A seed counts where every pair has it.
    """
    if not differences:
        return NOTHING
    common = [s for s in differences[0] if all(math.isfinite(each.get(s, math.nan)) for each in differences)]
    return t_interval([sum(each[seed] for each in differences) / len(differences) for seed in common])
