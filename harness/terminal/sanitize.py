"""Make text from models, users and files safe to display: control and invisible characters are shown by name.

A terminal obeys control characters, and Unicode's bidirectional marks reorder what a reader sees. Escaping for a format (HTML,
LaTeX, Markdown) is done where that format is written.
"""

from __future__ import annotations

import re

_NAMED = [
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0),  # all control characters except tab and line feed
    0x061C, 0x200B, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070),
    0xFEFF, 0xFFFE, 0xFFFF, *range(0xFFF9, 0xFFFC),
]  # fmt: skip
_TABLE = {code: f"⟨U+{code:04X}⟩" for code in _NAMED}
_SURROGATES = re.compile("[\ud800-\udfff]")


def show_hidden(text: str) -> str:
    """Return text with control characters, bidirectional marks and lone surrogates by name; tabs and line breaks stay."""
    shown = text.replace("\r\n", "\n").translate(_TABLE)
    return _SURROGATES.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", shown)
