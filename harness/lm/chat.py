"""Turns conversations into token ids, in the same way for training, teachers and evaluation."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.base import digest
from harness.config.models import Chat
from harness.errors import ModelError

TEMPLATES = Path(__file__).parent / "templates"


class Renderer:
    """A tokenizer with its chat template, stop tokens and thinking flag, each chosen once.

    Raises `ModelError` when a named stop token is not one token of the vocabulary or the template file is missing.
    """

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        self.tokenizer = tokenizer
        if chat.template is not None:
            tokenizer.chat_template = _read_template(chat.template)
        self.template_args = {} if chat.enable_thinking is None else {"enable_thinking": chat.enable_thinking}
        self.stop_ids = _stop_ids(tokenizer, chat.stop)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.stop_ids[0])

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered as chats; base models without a template get plain text."""
        return self.tokenizer.chat_template is not None

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text; lm-eval calls this with the same arguments."""
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.template_args,
        )

    def encode_prompt(self, text: str) -> list[int]:
        """Return a prompt's ids; a template writes its own BOS, so none is added to templated text."""
        return list(self.tokenizer.encode(text, add_special_tokens=not self.has_template))

    def encode_target(self, text: str) -> list[int]:
        """Return an answer's ids, ended by the first stop token."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.stop_ids[0]]

    def fingerprint(self) -> str:
        """Return a digest of everything that turns text into ids, and of the stop tokens."""
        if (backend := getattr(self.tokenizer, "backend_tokenizer", None)) is None:
            return digest([sorted(self.tokenizer.get_vocab().items()), self.stop_ids])
        parts = json.loads(backend.to_str())
        # Padding a batch changes these settings, which do not matter here.
        return digest([{**parts, "truncation": None, "padding": None}, self.stop_ids])

    @cached_property
    def identity(self) -> str:
        """A digest of everything that decides the ids of a conversation."""
        return digest([self.fingerprint(), self.tokenizer.chat_template, self.template_args])

    def decode(self, ids: list[int]) -> str:
        """Return a response as text without its special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _read_template(name: str) -> str:
    path = TEMPLATES / f"{name}.jinja" if "/" not in name and "." not in name else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise ModelError(f"chat template {name!r} was not found; expected a Jinja file or one of {known}")
    return path.read_text(encoding="utf-8")


def _stop_ids(tokenizer: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    if not names:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no eos token; name the stop tokens under `chat.stop`")
        return (tokenizer.eos_token_id,)
    vocabulary = tokenizer.get_vocab()
    if unknown := [name for name in names if name not in vocabulary]:
        raise ModelError(f"chat.stop names {unknown}, which are not single tokens of this tokenizer")
    return tuple(vocabulary[name] for name in names)
