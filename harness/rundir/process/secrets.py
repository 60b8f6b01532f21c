"""Keep secrets out of what a run records: values under secret names, tokens of known forms, and passwords in URLs.

The whole rule: a name is secret if one of its words is key, token, secret, password, passphrase, credential or auth. A text
under a secret key or option is masked. So is a word of eight or more characters, one of them a digit, that follows a secret
name and `=`, `:` or a space in a text. So are tokens with a known prefix (OpenAI, Hugging Face, GitHub, GitLab, AWS, Google,
Slack, JSON web tokens, private keys), and user and password in a URL. Numbers are never masked. A secret of another form
under another name is not found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.config.base import is_list, is_mapping

MASK = "(masked)"
_WORDS = r"(?:key|apikey|token|secret|password|passwd|passphrase|credentials?|auth)"
_NAME = rf"(?:[A-Za-z0-9]+[_.-])*{_WORDS}(?:[_.-][A-Za-z0-9]+)*"
SECRET_NAME = re.compile(rf"^-*{_NAME}$", re.IGNORECASE)
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
    """Return a JSON-like value with every secret in it masked; `name` is the key of the value."""
    if is_mapping(value):
        return {key: mask(part, str(key)) for key, part in value.items()}
    if is_list(value) and all(isinstance(part, str) for part in value):
        return mask_words(value)
    if isinstance(value, (list, tuple)):
        return [mask(part, name) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str):
        return value
    return MASK if value and SECRET_NAME.match(name) else mask_text(value)


def mask_words(words: Sequence[str]) -> list[str]:
    """Return a command line's words with the values of secret options masked: `--api-key X`, `--api-key=X`, `a.token=X`."""
    masked: list[str] = []
    secret_follows = False
    for word in words:
        name, equals, given = word.partition("=")
        if secret_follows and not word.startswith("-"):
            masked.append(MASK)
        elif equals and given and SECRET_NAME.match(name):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_text(word))
        secret_follows = word.startswith("-") and not equals and SECRET_NAME.match(word) is not None
    return masked


def mask_text(text: str) -> str:
    """Return a text with known tokens, users and passwords in URLs, and values of secret names masked."""
    text = USER_INFO.sub(MASK, SHAPED.sub(MASK, text))
    return ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{MASK}{found[2]}", text)


def holds_secret(code: str) -> bool:
    """Return whether code or a diff holds a token of a known form, a password in a URL, or a quoted value of a secret name."""
    return any(pattern.search(code) for pattern in (SHAPED, USER_INFO, QUOTED))
