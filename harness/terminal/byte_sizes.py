"""Numbers of bytes as text."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30


def show_bytes(size: float) -> str:
    """Return a number of bytes as text in MiB or GiB, with three significant digits."""
    number, unit = (size / MIB, "MiB") if size < GIB else (size / GIB, "GiB")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
