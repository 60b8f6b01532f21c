"""Text of models and users made harmless to look at: what would be invisible or turn a line around is shown by its name.

Escaping for HTML is the template's; this is about characters that no escaping helps against: control characters, null
bytes, and marks that reorder what a reader sees (Unicode's bidirectional controls).
"""

from __future__ import annotations

import re

LONGEST = 1_200  # characters of one text on a page
_NAMED = [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]  # all controls but the tab and the line feed
_NAMED += [0x061C, 0x200B, *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)]
_NAMED += [0xFEFF, 0xFFFE, 0xFFFF, *range(0xFFF9, 0xFFFC)]
_TABLE = {code: f"⟨U+{code:04X}⟩" for code in _NAMED}
_SURROGATES = re.compile("[\ud800-\udfff]")


def show_hidden(text: str) -> str:
    """Return text with control characters, reordering marks and half characters written out; line breaks and tabs stay."""
    shown = text.replace("\r\n", "\n").translate(_TABLE)
    return _SURROGATES.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", shown)


def cut_text(text: str, longest: int = LONGEST) -> str:
    """Return the beginning of a long text, and say how much is left out."""
    left = len(text) - longest
    return text if left <= 0 else f"{text[:longest]} … ({left:,} more characters)"
