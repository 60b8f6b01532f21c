"""Write CSV that a spreadsheet opens as numbers and texts, never as formulas."""

from __future__ import annotations

from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a text that begins with one of these is a formula to a spreadsheet


def to_csv_text(table: pd.DataFrame, **options: Any) -> str:
    """Return a table as CSV without its index; a text that a spreadsheet would take for a formula begins with an apostrophe.

    `options` are those of `DataFrame.to_csv`.
    """
    texts = table.select_dtypes(include=["object", "string"]).columns
    escaped = table.assign(**{str(name): table[name].map(_escape) for name in texts})
    return escaped.rename(columns=_escape).to_csv(index=False, **options)


def _escape(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
