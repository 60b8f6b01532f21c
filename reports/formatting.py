"""How numbers and names are written, in one way everywhere: on pages, in figures, in tables and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from harness.stats.intervals import Interval


def format_percent(share: float) -> str:
    """Write a share as a percentage without its sign, one decimal; a dash where there is none."""
    return "–" if math.isnan(share) else f"{100 * share:z.1f}".replace("-", "−")


def format_points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return "–" if math.isnan(difference) else f"{100 * difference:+z.1f}".replace("-", "−")


def format_decimal(value: float, *, signed: bool = False) -> str:
    """Write a number with two decimals, its plus sign where `signed`; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:{'+' * signed}.2f}".replace("-", "−")


def format_nats(entropy: float) -> str:
    """Write an entropy; a dash where there is none."""
    return "–" if math.isnan(entropy) else f"{entropy:z.3f}".replace("-", "−")


def format_nats_change(difference: float) -> str:
    """Write a difference of entropies, with its sign."""
    return "–" if math.isnan(difference) else f"{difference:+z.3f}".replace("-", "−")


def format_pull(value: float) -> str:
    """Write a pull, or a ratio of two, with four decimals; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:z.4f}".replace("-", "−")


def format_pull_change(difference: float) -> str:
    """Write a difference of pulls, or of their ratios, with its sign."""
    return "–" if math.isnan(difference) else f"{difference:+z.4f}".replace("-", "−")


def format_bounds(interval: Interval, write: Callable[[float], str] = format_points) -> str:
    """Write `[low, high]`; a dash where the interval has no bounds."""
    return "–" if math.isnan(interval.low) else f"[{write(interval.low)},\u00a0{write(interval.high)}]"


def format_with_bounds(interval: Interval) -> str:
    """Write `mean [low, high]` in points wherever there are bounds, also those over the items of a single seed."""
    mean = format_points(interval.mean)
    return mean if math.isnan(interval.low) else f"{mean} {format_bounds(interval)}"


def format_interval(interval: Interval, write: Callable[[float], str] = format_percent) -> str:
    """Write `mean [low, high]`, only the mean for a single seed, and a dash for none."""
    return write(interval.mean) if interval.seeds < 2 else f"{write(interval.mean)} {format_bounds(interval, write)}"


def format_p(p: float) -> str:
    """Write a p value with three decimals; a dash where nothing was tested."""
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def format_effect(value: float) -> str:
    """Write an effect with one decimal, or two significant digits below 1; a dash where there is none."""
    return "–" if not math.isfinite(value) else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def format_seeds(between: tuple[int | None, int | None]) -> str:
    """Write the fewest and the most seeds that a design may take; without an upper limit, `N or more`."""
    fewest, most = between
    return f"{fewest} to {most}" if most is not None else f"{fewest} or more"


def format_hours(hours: float) -> str:
    """Write hours, below two hours as minutes; a dash where the pilot did not record them."""
    if math.isnan(hours):
        return "–"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.0f} h"


def format_count(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shorten_names(tasks: Iterable[str]) -> dict[str, str]:
    """Return task names for axes and headers: without the first word if all share it, and with spaces for underscores."""
    names = list(dict.fromkeys(tasks))
    heads = {name.partition("_")[0] for name in names}
    shared = len(heads) == 1 and all("_" in name for name in names)
    return {name: (name.partition("_")[2] if shared else name).replace("_", " ") for name in names}
