"""Check a teacher's servers before training, and recognise them later, by the scores of a short fixed sequence: the probe.

The probe is scored when a teacher is opened and with every later request. Its scores are stored in the run's folder, so that
a run that continues recognises its teacher too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.base import digest
from harness.errors import ModelError
from harness.lm.checkpoints import Loaded
from harness.lm.completions import COMPLETIONS, AnswerError, Position, read_choices, read_prompt

if TYPE_CHECKING:
    from harness.lm.replicas import Replicas
    from harness.teachers.server import Server

TEXT = (
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does it take, and what is 3/4 of that time? Answer: The "
    "train takes 3 hours and 25 minutes, which is 205 minutes."
)
# Where tokenizers of one family differ: digits, spaces and tabs, code, accents, scripts without spaces, emoji, JSON.
VARIED = (
    'def f(x):\n\treturn x ** 2    # 1234567 \u2248 1.2e6\r\n\n"Stra\u00dfe" \u6771\u4eac \U0001f680 don\'t '
    '{"city": "S\u00e3o Paulo", "n": -0.5}'
)
WORDS, SPACED = 32, 12  # the probe: tokens of the text, then evenly spaced ids up to the largest one
CHECKED = (8, 20, 31)  # lengths of the prefixes that the server also continues
FEW = 5  # tokens of the distribution from which the server draws
FLAT = 1e-3  # nats; smaller differences between all scores mean that the weights are not loaded
WHOLE = 1e-6  # a top K with all but this of the probability was normalised without the other tokens


@dataclass(frozen=True)
class ServerProbe:
    """A sequence of token ids with the teacher's scores of it; `tolerance` is their largest mean difference, in nats.

    `sampled` are the scores that the run began with, `now` those of this opening.
    """

    ids: tuple[int, ...]
    sampled: tuple[float, ...]
    identity: str
    tolerance: float
    now: tuple[float, ...] = ()

    def compare(self, positions: Sequence[Position]) -> None:
        """Raise `AnswerError` if the scores are not those of the model that was checked."""
        apart = [abs(position.sampled - known) for position, known in zip(positions, self.sampled, strict=True)]
        if (mean := sum(apart) / len(apart)) > self.tolerance:
            raise AnswerError(
                f"the model behind it is not the one that the run began with: on the probe its log-probabilities differ by "
                f"{mean:.3g} nats on average, at most {self.tolerance:g} is expected (two teachers served under one name "
                "need different values of teacher.revision)"
            )


def examine(kind: Server, replicas: Replicas, student: Loaded, folder: Path) -> ServerProbe:
    """Check every replica and return the probe with its scores.

    Raises `ModelError` if a replica has a different tokenizer, gives equal scores to all tokens, normalises over the top K,
    contradicts itself or another replica, or is not the teacher that the run began with; `TrainingError` if its answers are
    malformed.
    """
    tokenizer = student.renderer.tokenizer
    ids = _probe_ids(tokenizer)
    first: ServerProbe | None = None
    for number, url in enumerate(replicas.urls):
        _check_tokenizer(kind, replicas, url, tokenizer)
        positions = _score_probe(kind, replicas, number, ids)
        _check_distribution(positions, url, len(tokenizer))
        _check_positions(kind, replicas, number, ids, positions)
        if first is None:
            first = _known_probe(kind, ids, positions, folder)
        try:
            first.compare(positions)
        except AnswerError as error:
            raise ModelError(
                f"the teacher at {url}: {error}; serve the earlier model again, or choose another --out"
            ) from error
    assert first is not None, "a server has at least one address"
    return first


def _probe_ids(tokenizer: Any) -> tuple[int, ...]:
    largest = max(tokenizer.get_vocab().values())
    words = list(tokenizer.encode(TEXT, add_special_tokens=False))[:WORDS]
    return (*words, *(largest * step // SPACED for step in range(1, SPACED + 1)))


def _check_tokenizer(kind: Server, replicas: Replicas, url: str, tokenizer: Any) -> None:
    """Compare the token ids of a text on the server and in the student; `/tokenize` is an endpoint of vLLM."""
    text = f"{TEXT}\n{VARIED}"
    body = {"model": kind.model, "prompt": text, "add_special_tokens": False}
    ids = replicas.post("/tokenize", body, _read_tokens, replicas.urls.index(url))
    if ids != (expected := list(tokenizer.encode(text, add_special_tokens=False))):
        raise ModelError(
            f"the teacher at {url} reads a text as {len(ids)} tokens that differ from the student's {len(expected)}; "
            "on-policy distillation scores the student's exact ids, so use models with the same tokenizer"
        )


def _read_tokens(_: Any, answer: Any) -> list[Any]:
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list):
        raise AnswerError("the answer of /tokenize has no tokens")
    return tokens


def _score_probe(kind: Server, replicas: Replicas, number: int, ids: Sequence[int]) -> list[Position]:
    """Return one replica's scores of the probe, from its second token on."""

    def read(_: Any, answer: Any) -> list[Position]:
        (choice,) = read_choices(answer, 1)
        return read_prompt(choice, ids, kind.max_logprobs)

    return replicas.post(COMPLETIONS, kind.body([ids], kind.max_logprobs), read, number)


def _check_distribution(positions: Sequence[Position], url: str, vocabulary: int) -> None:
    """Refuse scores without differences, and a top K that has the whole probability."""
    spread = [each.top_logprobs[0] - each.top_logprobs[-1] for each in positions]
    largest = max(abs(each.sampled - positions[0].sampled) for each in positions)
    if (len(positions[0].top_ids) > 1 and max(spread) < FLAT) or largest < FLAT:
        raise ModelError(
            f"the teacher at {url} gives every token the same log-probability, {positions[0].sampled:.4g}; its weights are "
            "not loaded, so restart the server"
        )
    mass = [sum(map(math.exp, each.top_logprobs)) for each in positions]
    if len(positions[0].top_ids) < vocabulary // 2 and min(mass) > 1 - WHOLE:
        raise ModelError(
            f"the teacher at {url} gives its {len(positions[0].top_ids)} most probable tokens a probability of 1 together at "
            "every position, so it normalises over them alone; serve log-probabilities over the vocabulary (--logprobs-mode "
            "raw_logprobs)"
        )


def _check_positions(
    kind: Server, replicas: Replicas, number: int, ids: Sequence[int], positions: Sequence[Position]
) -> None:
    """Compare the scores with the distribution from which the server draws: a shift or another temperature shows there."""
    few = min(FEW, kind.max_logprobs)
    prefixes = [list(ids[:length]) for length in CHECKED]
    body = kind.body(prefixes, kind.max_logprobs)
    body |= {"temperature": 1.0, "seed": 0, "logprobs": few, "return_tokens_as_token_ids": True}

    def read(_: Any, answer: Any) -> list[tuple[list[Position], dict[int, float]]]:
        choices = read_choices(answer, len(prefixes))
        return [(read_prompt(c, p, kind.max_logprobs), _drawn_from(c)) for c, p in zip(choices, prefixes, strict=True)]

    for length, (before, after) in zip(CHECKED, replicas.post(COMPLETIONS, body, read, number), strict=True):
        at = positions[length - 1]  # of the token after the prefix: the first position is that of the second token
        known = dict(zip(at.top_ids, at.top_logprobs, strict=True)) | {ids[length]: at.sampled}
        shared = [abs(known[token] - value) for token, value in after.items() if token in known]
        apart = [abs(a.sampled - b.sampled) for a, b in zip(before, positions, strict=False)]
        allowed = max(10 * kind.tolerance, 0.1)
        if not shared or max(shared) > allowed or max(apart) > allowed:
            worst = max([*shared, *apart], default=math.nan)
            raise ModelError(
                f"the teacher at {replicas.urls[number]} contradicts itself by {worst:.3g} nats after {length} tokens of the "
                "probe: its scores of a prompt are not from the distribution that it draws from, so they belong to other "
                "positions or another temperature; use a server that returns raw log-probabilities of the prompt"
            )


def _drawn_from(choice: dict[str, Any]) -> dict[int, float]:
    """Return the log-probabilities, by token id, of the distribution from which an answer's first token was drawn."""
    try:
        top = choice["logprobs"]["top_logprobs"][0]
        return {int(str(token).rpartition(":")[2]): float(value) for token, value in top.items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AnswerError("the answer has no log-probabilities of the generated token") from error


def _known_probe(kind: Server, ids: Sequence[int], positions: Sequence[Position], folder: Path) -> ServerProbe:
    """Return the probe with the scores in the run's folder, or with new ones, which are then written there."""
    path = folder / f"teacher_{digest([kind.model, kind.revision])}.json"
    sampled = tuple(each.sampled for each in positions)
    with suppress(FileNotFoundError, ValueError):  # a power cut may leave an empty file
        stored = json.loads(path.read_text(encoding="utf-8"))
        if tuple(stored["ids"]) == tuple(ids):
            return ServerProbe(tuple(ids), tuple(stored["sampled"]), stored["identity"], kind.tolerance, sampled)
    # Rounding changes scores but not the most probable tokens, so all runs of one teacher have the same identity.
    identity = digest([kind.model, kind.revision, [each.top_ids[0] for each in positions]])
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"ids": list(ids), "sampled": sampled, "identity": identity}), encoding="utf-8")
    partial.replace(path)
    return ServerProbe(tuple(ids), sampled, identity, kind.tolerance, sampled)
