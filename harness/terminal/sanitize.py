"""Text of models, users and files made harmless to look at: a character that acts or hides is shown by its name.

These are control characters, which a terminal obeys, and marks that reorder what a reader sees (Unicode's bidirectional
controls). Escaping for a format (HTML, LaTeX, Markdown) is that format's own matter.
"""

from __future__ import annotations

import re

_NAMED = [
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0),  # all controls but the tab and the line feed
    0x061C, 0x200B, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070),
    0xFEFF, 0xFFFE, 0xFFFF, *range(0xFFF9, 0xFFFC),
]  # fmt: skip
_TABLE = {code: f"⟨U+{code:04X}⟩" for code in _NAMED}
_SURROGATES = re.compile("[\ud800-\udfff]")


def show_hidden(text: str) -> str:
    """Return text with control characters, reordering marks and half characters written out; line breaks and tabs stay."""
    shown = text.replace("\r\n", "\n").translate(_TABLE)
    return _SURROGATES.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", shown)
