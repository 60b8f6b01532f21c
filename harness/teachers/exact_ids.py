"""Exact ids: the teacher's scores of a response's own tokens only, by vLLM's `POST /inference/v1/generate`.

A request names one set of ids for all positions of a sequence: the distinct tokens of the response. The answer has a row of
scores for each response token, and nothing for the prompt, no most probable tokens and no text. vLLM offers this with
`--enable-scale-out` and its second model runner, on GPUs with Triton. Other servers are asked for their top K.

A request has one sequence, so the probe cannot be part of it; the same replica scores the probe before and after.
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import TrainingError
from harness.lm.completions import COMPLETIONS, MOST_MASS, AnswerError, Position, read_choices, read_prompt
from harness.lm.replicas import Replicas, UnavailableError
from harness.lm.rollouts import Rollout
from harness.teachers.server_probe import ServerProbe

if TYPE_CHECKING:
    from harness.teachers.server import Server

GENERATE = "/inference/v1/generate"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExactIds:
    """Scores responses by requests for exact ids to the replicas of a teacher."""

    kind: Server
    replicas: Replicas
    probe: ServerProbe

    def is_offered(self) -> bool:
        """Return whether every replica scores exact ids, with the known scores for the ids of the probe."""
        ids = list(self.probe.ids[: self.kind.max_logprobs])  # a request may not name more distinct ids
        for url in self.replicas.urls:
            try:
                scores = self._ask(url, ids, 1)
            except (TrainingError, UnavailableError, AnswerError) as error:
                log.info("the teacher at %s does not score exact ids (%s), so it is asked for its top K", url, error)
                return False
            apart = [abs(score - known) for score, known in zip(scores, self.probe.sampled, strict=False)]
            if sum(apart) / len(apart) > self.kind.tolerance:
                log.warning("the teacher at %s scores exact ids differently, so it is asked for its top K", url)
                return False
        return True

    def score(self, rollouts: Sequence[Rollout]) -> dict[int, list[Position]]:
        """Return the positions of responses, without a top K, by the responses' indices.

        A response with more distinct tokens than a request may name, `max_logprobs`, is left out. Raises `TrainingError` if
        the retries end.
        """
        served = [row for row, each in enumerate(rollouts) if len(set(each.response)) <= self.kind.max_logprobs]
        return dict(
            zip(served, self.replicas.all_in_turn([self._scoring(rollouts[row]) for row in served]), strict=True)
        )

    def _scoring(self, rollout: Rollout) -> Callable[[str], list[Position]]:
        def score(url: str) -> list[Position]:
            # If the replica's weights change in between, one of the two comparisons fails.
            self._compare_probe(url)
            scores = self._ask(url, rollout.prompt_and_response, len(rollout.example.prompt))
            self._compare_probe(url)
            return [Position(logprob, (), ()) for logprob in scores]

        return score

    def _compare_probe(self, url: str) -> None:
        answer = self.replicas.ask(url, COMPLETIONS, self.kind.body([self.probe.ids], 1))
        (choice,) = read_choices(answer, 1)
        self.probe.compare(read_prompt(choice, self.probe.ids, 1))

    def _ask(self, url: str, ids: Sequence[int], first: int) -> list[float]:
        """Return the log-probabilities of the tokens from position `first` on."""
        named = sorted(set(ids[first:]))
        body = {
            "model": self.kind.model, "token_ids": list(ids), "return_token_ids": True,
            "sampling_params": {
                "max_tokens": 1, "temperature": 0.0, "prompt_logprob_token_ids": named, "prompt_logprob_start": first - 1,
            },
        }  # fmt: skip
        rows = _read_rows(self.replicas.ask(url, GENERATE, body), ids, (len(ids) - first, len(named)))
        columns = {token: column for column, token in enumerate(named)}
        return [float(row[columns[token]]) for row, token in zip(rows, ids[first:], strict=True)]


def _read_rows(answer: Any, ids: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the scores (tokens, ids); raises `AnswerError` for another sequence, and for scores that no model computes."""
    if not isinstance(answer, dict) or answer.get("prompt_token_ids") != list(ids):
        raise AnswerError("the answer belongs to another prompt: its token ids are not those of the request")
    text = answer.get("prompt_token_id_logprobs")
    if not isinstance(text, str):
        raise AnswerError("the answer has no scores of exact ids")
    try:
        rows = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise AnswerError(f"the scores of exact ids cannot be read ({error})") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != shape:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise AnswerError(f"the scores of exact ids are {found}, expected float32 {shape}")
    if not np.isfinite(rows).all() or float(rows.max(initial=-math.inf)) > 1e-4:
        raise AnswerError("the scores of exact ids contain a number that is not a log-probability")
    if (mass := float(np.exp(rows.astype(np.float64)).sum(-1).max(initial=0.0))) > MOST_MASS:
        raise AnswerError(f"the exact ids of a position have a probability of {mass:.3g} together, expected at most 1")
    return rows
