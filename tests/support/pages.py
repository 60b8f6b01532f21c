"""What tests read from the pages of documentation."""

from __future__ import annotations

import re


def blocks(page: str, language: str) -> list[str]:
    """Return a page's code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
