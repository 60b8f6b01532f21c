"""Turn conversations into token ids, in the same way for training, teachers and evaluation."""

from __future__ import annotations

import json
import math
import re
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from harness.config.base import digest
from harness.config.models import Chat
from harness.errors import ModelError

BATCH = 1000  # texts that are encoded at a time
TEMPLATE_SECONDS, TEMPLATE_CHARACTERS = 10.0, 10**7
TEMPLATES = Path(__file__).parent / "templates"


class Renderer:
    """A tokenizer with its chat template, stop tokens and thinking flag.

    Without `chat.stop`, an answer ends at the tokenizer's eos token and at those in `eos`, the ids that the checkpoint's
    generation_config.json names. Raises `ModelError` when a named stop token is not a single token of the vocabulary, when the
    template file is missing or its rendering does not end, and when the tokenizer ends every text with a special token, which
    would end each prompt before its answer.
    """

    def __init__(self, tokenizer: Any, chat: Chat, eos: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        if chat.template is not None:
            tokenizer.chat_template = _read_template(chat.template)
        self.template_args = {} if chat.enable_thinking is None else {"enable_thinking": chat.enable_thinking}
        self.stop_ids = _stop_ids(tokenizer, chat.stop) if chat.stop else self._own_stop_ids(eos)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.stop_ids[0])
        _refuse_ended_prompts(tokenizer)

    def _own_stop_ids(self, eos: Sequence[int]) -> tuple[int, ...]:
        """Return the ids at which the checkpoint itself ends an answer; the one that ends a turn in the template is first."""
        own = self.tokenizer.eos_token_id
        known = [token for token in eos if token < len(self.tokenizer)]
        ids = tuple(dict.fromkeys(known if own is None else [own, *known]))
        if not ids:
            raise ModelError("the tokenizer has no eos token; name the stop tokens under `chat.stop`")
        if len(ids) == 1 or not self.has_template:
            return ids
        # Training targets end with the first stop token, so it must be the one that the template writes.
        turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            with _time_limit(TEMPLATE_SECONDS):
                text = self.tokenizer.apply_chat_template(turn, tokenize=False, **self.template_args)
        except TemplateError:
            return ids
        after = text.rpartition("answer")[2]
        return tuple(sorted(ids, key=lambda token: not after.startswith(self.tokenizer.decode([token]))))

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered as conversations; a base model without a template gets plain text."""
        return self.tokenizer.chat_template is not None

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text; the arguments are those with which lm-eval calls it.

        Raises `ModelError` if the template refuses the conversation, as some refuse a system turn, does not end, or writes
        more than TEMPLATE_CHARACTERS.
        """
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self.template_args,
        }
        try:
            with _time_limit(TEMPLATE_SECONDS):
                text = self.tokenizer.apply_chat_template(messages, **options)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(
                f"the model's chat template refuses a conversation of {roles} ({error}); a task's `description` is a system "
                "turn, so remove it from the task, or name another template under `chat.template`"
            ) from error
        if len(text) > TEMPLATE_CHARACTERS:
            raise ModelError(
                f"the chat template wrote {len(text):,} characters for one conversation, expected at most "
                f"{TEMPLATE_CHARACTERS:,}; use another template"
            )
        return text

    def encode_prompt(self, text: str) -> list[int]:
        """Return a prompt's ids, the same as lm-eval's: the tokenizer adds its BOS token unless the text begins with it."""
        return self.encode_prompts([text])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several prompts, as `encode_prompt` makes them; a batch takes a fraction of the time."""
        ids: list[list[int]] = []
        for special, group in groupby(texts, self._adds_special_tokens):
            ids += self._encode(list(group), special)
        return ids

    def _encode(self, texts: list[str], special: bool = False) -> list[list[int]]:
        parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        options = {"add_special_tokens": special, "return_attention_mask": False}
        return [list(ids) for part in parts for ids in self.tokenizer(part, **options)["input_ids"]]

    def longest_prompt(self, texts: Sequence[str], room: int = 0) -> int:
        """Return the number of ids of the longest prompt, as `encode_prompt` makes them, or 0 if none has more than `room`.

        To save time, a prompt that cannot have more than `room` ids is not encoded.
        """
        candidates = [text for text in texts if self.most_ids(text) > room]
        longest = max(map(len, self.encode_prompts(candidates)), default=0)
        return longest if longest > room else 0

    def most_ids(self, text: str) -> float:
        """Return an upper bound on a text's number of ids, without encoding it.

        ASCII text has at most one id per character. An added token is one id, and a tokenizer may add a space after it and
        before the text. For other text the bound is infinite, because a tokenizer may normalise one character to several.
        """
        return len(self._added_tokens.sub("xx", text)) + self._ids_before_text if text.isascii() else math.inf

    @cached_property
    def _added_tokens(self) -> re.Pattern[str]:
        names = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _ids_before_text(self) -> int:
        return len(self.tokenizer.encode("")) + 1

    def _adds_special_tokens(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))

    def encode_targets(self, texts: Sequence[str], after: Sequence[str]) -> list[list[int]]:
        """Return the ids of several answers, each ended by the first stop token; `after` are the ends of their prompts.

        Prompt and answer are encoded together and the prompt's ids are removed, because some tokenizers put a space before
        every text. If a token spans the border, the answer is encoded separately.
        """
        before = [ids if prompt else [] for ids, prompt in zip(self._encode(list(after)), after, strict=True)]
        whole = self._encode([prompt + text for text, prompt in zip(texts, after, strict=True)])
        shared = [ids[: len(prompt)] != prompt for ids, prompt in zip(whole, before, strict=True)]
        alone = iter(self._encode([text for text, mixed in zip(texts, shared, strict=True) if mixed]))
        parts = zip(whole, before, shared, strict=True)
        return [[*(next(alone) if mixed else ids[len(prompt) :]), self.stop_ids[0]] for ids, prompt, mixed in parts]

    def fingerprint(self) -> str:
        """Return a digest of the tokenizer, without padding and truncation settings, and of the stop tokens."""
        if (backend := getattr(self.tokenizer, "backend_tokenizer", None)) is None:
            return digest([sorted(self.tokenizer.get_vocab().items()), self.stop_ids])
        parts = json.loads(backend.to_str())
        # Padding a batch changes these two settings; they do not affect single texts.
        return digest([{**parts, "truncation": None, "padding": None}, self.stop_ids])

    @cached_property
    def identity(self) -> str:
        """A digest of everything that decides a conversation's ids: tokenizer, stop tokens and template."""
        return digest([self.fingerprint(), self.tokenizer.chat_template, self.template_args])

    def decode(self, ids: list[int]) -> str:
        """Return a response's text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@contextmanager
def _time_limit(seconds: float) -> Generator[None]:
    """Raise `ModelError` in the block after some seconds; without effect outside the main thread, which signals reach."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise ModelError(f"the chat template did not end within {seconds:g} seconds; use another template")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _refuse_ended_prompts(tokenizer: Any) -> None:
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    if plain and whole[-len(plain) :] != plain:
        ending = tokenizer.convert_ids_to_tokens(whole[-1])
        raise ModelError(
            f"the tokenizer puts {ending} at the end of every text, so each prompt would end before its answer; set "
            "`add_eos_token` to false in its tokenizer_config.json, or remove the token from the post_processor in its "
            "tokenizer.json"
        )


def _read_template(name: str) -> str:
    path = TEMPLATES / f"{name}.jinja" if "/" not in name and "." not in name else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise ModelError(f"chat template {name!r} was not found; expected a Jinja file or one of {known}")
    return path.read_text(encoding="utf-8")


def _stop_ids(tokenizer: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    if unknown := [name for name in names if name not in vocabulary]:
        raise ModelError(
            f"chat.stop names {', '.join(map(repr, unknown))}, expected single tokens of this tokenizer's vocabulary"
        )
    return tuple(vocabulary[name] for name in names)
