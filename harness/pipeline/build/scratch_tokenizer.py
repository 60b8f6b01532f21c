"""Tokenizers built from scratch: the byte-level BPE of the scratch models, and a tokenizer of bytes to show prompts with.

They have a module of their own because a dry run needs a tokenizer but no model, whose classes take seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.config.models import Scratch
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task, Text

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Regular expressions by `tokenizer.spaces`. Each digit is a token, so that sums are learnable; punctuation may merge, so that
# JSON is short.
WORDS = {"own": r"\p{N}|\p{L}+|[^\s\p{L}\p{N}]+|\s+", "leading": r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"}


def training_texts(
    spec: Scratch, library: TaskLibrary, loaded: Mapping[str, Task] | None = None
) -> dict[str, list[Text]]:
    """Return the (question, answer) pairs of every task that tokenizer or warm-up reads, by task.

    `loaded` holds tasks that need not be loaded again, by name.
    """
    known = loaded or {}
    texts: dict[str, list[Text]] = {}
    for name in dict.fromkeys([*spec.tokenizer.tasks, *spec.warmup.mixture]):
        texts[name] = known[name].training_texts() if name in known else library.training_texts(name)
    return texts


def train_tokenizer(spec: Scratch, texts: dict[str, list[Text]]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the questions and answers of the recipe's tasks."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS[spec.tokenizer.spaces]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=spec.tokenizer.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_text(spec, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=spec.architecture.context,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes and ChatML's markers; it shows prompts without a model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def _tokenizer_text(spec: Scratch, texts: dict[str, list[Text]]) -> Iterator[str]:
    for task in spec.tokenizer.tasks:
        for question, answer in texts[task][: spec.tokenizer.items_per_task]:
            yield f"user\n{question}"
            yield f"assistant\n{answer}"
