"""The tokens of a conversation: many texts as one by one, how long the longest prompt is, with every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harness.config.models import Chat
from harness.lm.chat import Renderer
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer


def with_bos() -> Any:
    """Return the byte tokenizer with a token that it puts before every text, as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", len(tokenizer) - 1)]
    )
    return tokenizer


def with_spaces() -> Any:
    """Return a tokenizer of characters that writes a space before every text and splits what it normalises, as T5's does."""
    alphabet = {chr(code): code for code in range(32, 127)} | {"\u2581": 127, "</s>": 128, "?!": 129}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="\u2581"))
    tokenizer.normalizer = normalizers.NFKC()  # pyright: ignore[reportAttributeAccessIssue]
    parts = [pre_tokenizers.Metaspace(), pre_tokenizers.Split("", "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    made.add_tokens(["?!"])
    return made


PARTS = st.sampled_from(["a", "ab 1", "\n", " ", "<|im_end|>", "<s>", "?!", "</s>", "\ufdfa", "\u00e9", "\U0001f600"])
RENDERERS = {make.__name__: Renderer(make(), Chat()) for make in (byte_tokenizer, with_bos, with_spaces)}


@pytest.mark.parametrize("kind", RENDERERS)
@given(texts=st.lists(st.lists(PARTS).map("".join)), room=st.integers(0, 12))
def test_the_longest_prompt_is_the_longest_of_all_encoded(kind: str, texts: list[str], room: int):
    renderer = RENDERERS[kind]
    lengths = [len(renderer.encode_prompt(text)) for text in texts]
    longest = max(lengths, default=0)
    assert renderer.longest_prompt(texts, room) == (longest if longest > room else 0)
    assert all(length <= renderer.most_ids(text) for text, length in zip(texts, lengths, strict=True))


@pytest.mark.parametrize("kind", RENDERERS)
@given(texts=st.lists(st.tuples(st.lists(PARTS).map("".join), st.lists(PARTS).map("".join))))
def test_many_texts_have_the_tokens_of_each_alone(kind: str, texts: list[tuple[str, str]]):
    renderer = RENDERERS[kind]
    prompts, answers = [prompt for prompt, _ in texts], [answer for _, answer in texts]
    tokenizer = renderer.tokenizer
    for prompt, ids in zip(prompts, renderer.encode_prompts(prompts), strict=True):
        bare = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
        assert ids == tokenizer.encode(prompt, add_special_tokens=not bare)
    for prompt, answer, ids in zip(prompts, answers, renderer.encode_targets(answers, prompts), strict=True):
        before = tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
        whole = tokenizer.encode(prompt + answer, add_special_tokens=False)
        follows = whole[: len(before)] == before
        alone = tokenizer.encode(answer, add_special_tokens=False)
        assert ids == [*(whole[len(before) :] if follows else alone), renderer.stop_ids[0]]
