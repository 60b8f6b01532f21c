"""Secrets stay out of what a run records: values under telling names, tokens of known shapes, and passwords in URLs.

The rule, in full: a text under a key or an option whose name has the word key, token, secret, password, passphrase, credential
or auth is masked; so is what follows such a name and `=` or `:` in a text, if it has eight characters or more; so are tokens
with a known prefix (OpenAI, Hugging Face, GitHub, GitLab, AWS, Google, Slack, JSON web tokens, private keys) and the user part
of a URL. Numbers are never masked. What has another shape and another name is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.config.base import is_list, is_mapping

MASK = "(masked)"
_WORDS = r"(?:key|apikey|token|secret|password|passwd|passphrase|credentials?|auth)"
_NAME = rf"(?:[A-Za-z0-9]+[_.-])*{_WORDS}(?:[_.-][A-Za-z0-9]+)*"
TELLING = re.compile(rf"^-*{_NAME}$", re.IGNORECASE)
ASSIGNED = re.compile(
    rf"(?<![\w-])(-*{_NAME}[\"']?(?:\s*[=:]\s*|\s+))(?=\S*\d)([\"']?)([^\s\"']{{8,}})\2", re.IGNORECASE
)
SHAPED = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{8,}|\bhf_[A-Za-z0-9]{16,}|\bgh[opsur]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{12,}|\bAKIA[A-Z0-9]{12,}"
    r"|\bAIza[\w-]{20,}|\bxox[a-z]-[\w-]{8,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?<=Bearer )[\w.~+/-]{8,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
USER_INFO = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
QUOTED = re.compile(rf"{_NAME}[\"']?\s*[=:]\s*([\"'])[^\s\"'{{}}<>|]{{8,}}\1", re.IGNORECASE)


def mask(value: Any, name: str = "") -> Any:
    """Return a JSON-like value with every secret in it masked; `name` is the key that it stands under."""
    if is_mapping(value):
        return {key: mask(part, str(key)) for key, part in value.items()}
    if is_list(value) and all(isinstance(part, str) for part in value):
        return mask_words(value)
    if isinstance(value, (list, tuple)):
        return [mask(part, name) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str):
        return value
    return MASK if value and TELLING.match(name) else mask_text(value)


def mask_words(words: Sequence[str]) -> list[str]:
    """Return a command line's words with the values of telling options masked: `--api-key X`, `--api-key=X`, `a.token=X`."""
    masked: list[str] = []
    telling = False
    for word in words:
        name, equals, given = word.partition("=")
        if telling and not word.startswith("-"):
            masked.append(MASK)
        elif equals and given and TELLING.match(name):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_text(word))
        telling = word.startswith("-") and not equals and TELLING.match(word) is not None
    return masked


def mask_text(text: str) -> str:
    """Return a text without known tokens, users and passwords in URLs, and what telling names get."""
    text = USER_INFO.sub(MASK, SHAPED.sub(MASK, text))
    return ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{MASK}{found[2]}", text)


def holds_secret(code: str) -> bool:
    """Return whether source code or a diff holds a token of a known shape, a password in a URL, or a quoted telling value."""
    return any(pattern.search(code) for pattern in (SHAPED, USER_INFO, QUOTED))
