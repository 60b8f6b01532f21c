"""Check servers before they teach, and recognise them while they do: a short fixed sequence and its scores.

The probe is scored when a teacher is opened and with every request after that. Its scores lie in the run's folder, so that a
run that continues recognises its teacher too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.base import digest
from harness.errors import ModelError
from harness.lm.checkpoints import Loaded
from harness.lm.completions import AnswerError, Position, read_choices, read_prompt

if TYPE_CHECKING:
    from harness.lm.replicas import Replicas
    from harness.teachers.server import Server

TEXT = (
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does it take, and what is 3/4 of that time? Answer: The "
    "train takes 3 hours and 25 minutes, which is 205 minutes."
)
WORDS, SPACED = 32, 12  # tokens of the text, then ids at even distances up to the largest one
CHECKED = (8, 20, 31)  # lengths of the prefixes that the server also continues
FEW = 5
FLAT = 1e-3
WHOLE = 1e-6


@dataclass(frozen=True)
class ServerProbe:
    """A sequence of token ids with the teacher's scores of it, and how far rounding may move them on average."""

    ids: tuple[int, ...]
    sampled: tuple[float, ...]
    identity: str
    tolerance: float

    def compare(self, positions: Sequence[Position]) -> None:
        """Raise `AnswerError` where the scores are not those of the model that was checked."""
        apart = [abs(found.sampled - known) for found, known in zip(positions, self.sampled, strict=True)]
        if (mean := sum(apart) / len(apart)) > self.tolerance:
            raise AnswerError(
                f"the model behind it is not the one that the run began with: on the probe its log-probabilities differ by "
                f"{mean:.3g} nats on average, expected at most {self.tolerance:g}"
            )


def examine(kind: Server, replicas: Replicas, student: Loaded, folder: Path) -> ServerProbe:
    """Check every replica and return the probe with their scores.

    Raises `ModelError` where a replica has another tokenizer, returns fewer tokens than asked for, answers flatly, scores
    positions other than its own, contradicts itself or another replica, or is not the teacher that the run began with.
    """
    tokenizer = student.renderer.tokenizer
    ids = _probe_ids(tokenizer)
    first: ServerProbe | None = None
    for number, url in enumerate(replicas.urls):
        _check_tokenizer(kind, replicas, url, tokenizer)
        positions = _scores(kind, replicas, number, [ids])[0]
        _check_flat(positions, url, len(tokenizer))
        _check_places(kind, replicas, number, ids, positions)
        if first is None:
            first = _known_probe(kind, ids, positions, folder)
        try:
            first.compare(positions)
        except AnswerError as error:
            raise ModelError(
                f"the teacher at {url}: {error}; put the former model back, or choose another --out"
            ) from error
    assert first is not None, "a server has at least one address"
    return first


def _probe_ids(tokenizer: Any) -> tuple[int, ...]:
    largest = max(tokenizer.get_vocab().values())
    words = list(tokenizer.encode(TEXT, add_special_tokens=False))[:WORDS]
    return (*words, *(largest * step // SPACED for step in range(1, SPACED + 1)))


def _check_tokenizer(kind: Server, replicas: Replicas, url: str, tokenizer: Any) -> None:
    """Compare how server and student read a text; `/tokenize` is vLLM's own."""
    body = {"model": kind.model, "prompt": TEXT, "add_special_tokens": False}
    found = replicas.post("/tokenize", body, _read_tokens, replicas.urls.index(url))
    if found != (expected := list(tokenizer.encode(TEXT, add_special_tokens=False))):
        raise ModelError(
            f"the teacher at {url} reads a text as {len(found)} tokens, other than the student's {len(expected)}; on-policy "
            "distillation scores the student's exact ids, so take models of one tokenizer"
        )


def _read_tokens(_: Any, answer: Any) -> list[Any]:
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list):
        raise AnswerError("the answer of /tokenize holds no tokens")
    return tokens


def _scores(kind: Server, replicas: Replicas, number: int, prompts: Sequence[Sequence[int]]) -> list[list[Position]]:
    def read(_: Any, answer: Any) -> list[list[Position]]:
        choices = read_choices(answer, len(prompts))
        return [read_prompt(c, ids, kind.max_logprobs) for c, ids in zip(choices, prompts, strict=True)]

    return replicas.post("/v1/completions", kind.body(prompts, kind.max_logprobs), read, number)


def _check_flat(positions: Sequence[Position], url: str, vocabulary: int) -> None:
    spread = [each.top_logprobs[0] - each.top_logprobs[-1] for each in positions]
    same = max(abs(each.sampled - positions[0].sampled) for each in positions)
    if (len(positions[0].top_ids) > 1 and max(spread) < FLAT) or same < FLAT:
        raise ModelError(
            f"the teacher at {url} gives every token the same log-probability, {positions[0].sampled:.4g}; its weights are "
            "not loaded, so restart the server"
        )
    mass = [sum(map(math.exp, each.top_logprobs)) for each in positions]
    if len(positions[0].top_ids) < vocabulary // 2 and min(mass) > 1 - WHOLE:
        raise ModelError(
            f"the teacher at {url} gives its {len(positions[0].top_ids)} most probable tokens the whole mass at every "
            "position, so it normalises over them alone; serve log-probabilities over the vocabulary (--logprobs-mode "
            "raw_logprobs)"
        )


def _check_places(
    kind: Server, replicas: Replicas, number: int, ids: Sequence[int], positions: Sequence[Position]
) -> None:
    """Compare the scores with what the server draws from: a shifted position or another temperature differs there."""
    few = min(FEW, kind.max_logprobs)
    prefixes = [list(ids[:length]) for length in CHECKED]
    body = kind.body(prefixes, kind.max_logprobs)
    body |= {"temperature": 1.0, "seed": 0, "logprobs": few, "return_tokens_as_token_ids": True}

    def read(_: Any, answer: Any) -> list[tuple[list[Position], dict[int, float]]]:
        choices = read_choices(answer, len(prefixes))
        return [(read_prompt(c, p, kind.max_logprobs), _drawn_from(c)) for c, p in zip(choices, prefixes, strict=True)]

    for length, (before, after) in zip(CHECKED, replicas.post("/v1/completions", body, read, number), strict=True):
        at = positions[length - 1]  # the first position is that of the second token
        known = dict(zip(at.top_ids, at.top_logprobs, strict=True)) | {ids[length]: at.sampled}
        shared = [abs(known[token] - value) for token, value in after.items() if token in known]
        apart = [abs(a.sampled - b.sampled) for a, b in zip(before, positions, strict=False)]
        allowed = max(10 * kind.tolerance, 0.1)
        if not shared or max(shared) > allowed or max(apart) > allowed:
            worst = max([*shared, *apart], default=math.nan)
            raise ModelError(
                f"the teacher at {replicas.urls[number]} contradicts itself by {worst:.3g} nats after {length} tokens of the "
                "probe: its scores of a prompt are not the distribution that it draws from, so they belong to other positions "
                "or another temperature; use a server that returns raw log-probabilities of the prompt"
            )


def _drawn_from(choice: dict[str, Any]) -> dict[int, float]:
    try:
        top = choice["logprobs"]["top_logprobs"][0]
        return {int(str(token).rpartition(":")[2]): float(value) for token, value in top.items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AnswerError("the answer holds no log-probabilities of the generated token") from error


def _known_probe(kind: Server, ids: Sequence[int], positions: Sequence[Position], folder: Path) -> ServerProbe:
    """Return the probe as the run's folder has it, or write it there."""
    path = folder / f"teacher_{digest([kind.model, kind.revision])}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if tuple(stored["ids"]) == tuple(ids):
            return ServerProbe(tuple(ids), tuple(stored["sampled"]), stored["identity"], kind.tolerance)
    sampled = tuple(each.sampled for each in positions)
    # The most probable tokens, unlike the scores, survive rounding, so runs of one teacher have one identity.
    identity = digest([kind.model, kind.revision, [each.top_ids[0] for each in positions]])
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"ids": list(ids), "sampled": sampled, "identity": identity}), encoding="utf-8")
    partial.replace(path)
    return ServerProbe(tuple(ids), sampled, identity, kind.tolerance)
