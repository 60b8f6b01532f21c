"""A series of numbers as one line of text, for terminals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Return a line of at most `width` blocks, each the mean of its part of the series; what is not finite is left out.

    The lowest block is the smallest mean and the highest the largest; a series without any spread is drawn low.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return ""
    means = np.array([part.mean() for part in np.array_split(known, min(width, known.size))])
    spread = np.ptp(means)
    heights = (means - means.min()) / spread if spread else np.zeros_like(means)
    return "".join(BLOCKS[level] for level in np.rint(heights * (len(BLOCKS) - 1)).astype(int))
