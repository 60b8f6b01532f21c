"""What a vLLM server says of itself: what it was started with, and of which hand-over its weights are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, RunError
from harness.lm.completions import AnswerError

if TYPE_CHECKING:
    from harness.lm.replicas import Replicas

EXTENSION = "harness.engines.vllm_worker.WeightsInPlace"
LOGPROBS_MODE = "processed_logprobs"  # of the distribution that was sampled from, as the trainer computes them
DESCRIBE = {"method": "describe_server"}  # for /collective_rpc
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # requests carry ids and stop tokens, so a server uses none


@dataclass(frozen=True)
class ServedSettings:
    """A server's dtype, the kind of log-probabilities that it returns, and the configuration of its model."""

    dtype: str
    logprobs_mode: str
    config: dict[str, Any]


def check_server(replicas: Replicas, url: str, dtype: str, checkpoint: Path) -> None:
    """Raise `RunError` if a server would compute something else with a checkpoint's weights than the suite says.

    A server takes weights, but keeps the dtype and the configuration, such as the rotary base, that it was started with.
    """
    from harness.lm.checkpoints import computed_config

    found = _read_settings(replicas, url)
    if found.logprobs_mode != LOGPROBS_MODE:
        raise RunError(
            f"the rollout server at {url} returns {found.logprobs_mode}, expected {LOGPROBS_MODE}; start it with "
            f"--logprobs-mode {LOGPROBS_MODE}"
        )
    if found.dtype != dtype:
        raise RunError(
            f"the rollout server at {url} computes in {found.dtype}, expected {dtype} (vllm_server.dtype); start it with "
            f"--dtype {dtype}, or set vllm_server.dtype to {found.dtype}"
        )
    own = json.loads(json.dumps(computed_config(checkpoint), default=str))
    if apart := list(_differences(found.config, own)):
        raise RunError(
            f"the rollout server at {url} serves a model with another configuration than {checkpoint}: {', '.join(apart)}; "
            "start it again on a checkpoint with the same config.json"
        )


def _read_settings(replicas: Replicas, url: str) -> ServedSettings:
    from harness.lm.replicas import UnavailableError

    try:
        replicas.get(url, "/version")  # waits for a server that is starting
        # Asked once: a server without the method answers as one that is broken.
        (worker, *_) = replicas.ask(url, "/collective_rpc", DESCRIBE)["results"]
        found = ServedSettings(worker["dtype"], worker["logprobs_mode"], json.loads(worker["config"]))
    except (HarnessError, UnavailableError, AnswerError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the rollout server at {url} does not tell its settings ({error}); start it with VLLM_SERVER_DEV_MODE=1 and "
            f"--worker-extension-cls {EXTENSION}, with the run's version of the harness installed"
        ) from error
    if "tag" not in worker:
        raise RunError(
            f"the rollout server at {url} has an older worker extension, which cannot tell whether the server was restarted; "
            "install the run's version of the harness next to it, and start it again"
        )
    return found


def read_tags(answer: Any) -> set[str]:
    """Return the hand-overs of which a server's workers have weights, from its answer to `DESCRIBE`."""
    try:
        return {worker["tag"] for worker in answer["results"]}
    except (KeyError, TypeError) as error:
        raise AnswerError("the answer does not tell of which hand-over the weights are") from error


def _differences(served: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the settings with two values, such as `rope_parameters.rope_theta (10000.0 and 5000.0)`.

    Settings of one side alone are skipped, because versions of transformers write different ones.
    """
    for name in served.keys() & own.keys() - set(TOKENS):
        here, there = served[name], own[name]
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from _differences(here, there, f"{prefix}{name}.")
        elif here != there:
            yield f"{prefix}{name} ({here} and {there})"
