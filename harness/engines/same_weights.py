"""Whether the replicas of a rollout server have the weights of the last hand-over: asked after it, and after each answer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from harness.engines.served_settings import DESCRIBE, read_tags
from harness.errors import RunError, TrainingError
from harness.lm.completions import COMPLETIONS, read_choices, read_prompt
from harness.lm.replicas import Patience, Replicas

PROBE = list(range(1, 25))  # ids that every vocabulary has
SAME = 0.02  # largest mean difference on the probe, in nats, that rounding may cause


class SameWeights:
    """Compares the tag that each replica keeps of a hand-over, and its scores of a probe.

    A replica that was restarted has lost the tag, however near its weights are. The probe finds other changes of weights.
    """

    def __init__(self, urls: Sequence[str], patience: Patience, model: str) -> None:
        self.model = model
        self._single = [Replicas((url,), patience, 1, role="rollout server") for url in urls]
        self._tag = ""
        self._probed: list[float] | None = None

    def begin(self) -> str:
        """Return the random tag of a hand-over that begins."""
        self._tag, self._probed = uuid.uuid4().hex, None
        return self._tag

    def check(self) -> None:
        """Raise `RunError` for a replica that has another tag, or does not score the probe as the first one at first did."""
        for replica in self._single:
            (url,) = replica.urls
            if (tags := _tags_of(replica, url)) != {self._tag}:
                raise _other_weights(
                    url, "it was started again" if "" in tags else "another process handed over its own"
                )
            positions = replica.post(COMPLETIONS, scoring(self.model, PROBE), read_scored)
            scores = [at[token] for token, at in zip(PROBE, positions, strict=True) if at is not None]
            self._probed = self._probed or scores
            apart = sum(abs(a - b) for a, b in zip(scores, self._probed, strict=True)) / len(scores)
            if apart > SAME:
                raise _other_weights(url, f"its log-probabilities differ by {apart:.3g} nats on average")

    def close(self) -> None:
        """Close the connections."""
        for replica in self._single:
            replica.close()


def scoring(model: str, ids: list[int]) -> dict[str, Any]:
    """Return a request for the log-probabilities of a prompt's tokens and of the most probable ones."""
    return {"model": model, "prompt": [ids], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}


def read_scored(body: Any, answer: Any) -> list[dict[int, float] | None]:
    """Return for each position of a prompt the two log-probabilities by token; None for the first one."""
    (ids,) = body["prompt"]
    (choice,) = read_choices(answer, 1)
    pairs = zip(ids[1:], read_prompt(choice, ids, 1), strict=True)
    return [None, *({at.top_ids[0]: at.top_logprobs[0], token: at.sampled} for token, at in pairs)]


def _tags_of(replica: Replicas, url: str) -> set[str]:
    try:
        return replica.inquire(url, "/collective_rpc", DESCRIBE, read_tags)
    except TrainingError as error:
        raise RunError(
            f"the rollout server at {url} does not tell which weights it has ({error}); start it as before the run"
        ) from error


def _other_weights(url: str, found: str) -> RunError:
    return RunError(
        f"the rollout server at {url} has other weights than those of the last hand-over ({found}); the same command "
        "continues from the last snapshot and hands them over"
    )
