"""The process in which vLLM runs: `python -m harness.engines.vllm_process FD PARENT`, started by `harness.engines.vllm`.

A separate process frees its memory when it ends, needs no guarded `__main__` in the user's script, and can crash without the
run. The engine core runs in this same process, so an error is raised here with its own cause. Requests come as (name,
arguments) on the connection with file descriptor FD; replies are (True, value) or (False, error message). The process ends
when the connection is closed, or soon after the run was killed.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from harness.engines.vllm_worker import prepare_output_layer

# Read when vLLM is imported: no second process for the core, no statistics sent anywhere.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}


class VLLMHost:
    """The requests that this process answers with vLLM; methods take and return plain values, or tensors by name."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        # Logged here, because what vLLM logs depends on a level that other libraries change.
        print(f"starting vLLM on {model} with {options}", flush=True)
        self.vllm: Any = importlib.import_module("vllm")
        # Report the log-probabilities of the distribution that was sampled, temperature included, as the trainer does.
        self.llm = self.vllm.LLM(model=model, generation_config="vllm", logprobs_mode="processed_logprobs", **options)

    def load(self, folder: str) -> None:
        """Load another checkpoint's weights, of the same architecture, and clear the prefix cache of the old ones."""
        self._reload(weights_path=folder)

    def take(self, weights: dict[str, Any]) -> None:
        """Load tensors by the names of a checkpoint of the same architecture; they are in the caller's memory."""
        self._reload(weights_iterator=list(weights.items()))

    def _reload(self, **source: Any) -> None:
        self.llm.collective_rpc("reload_weights", kwargs=source)
        self.llm.apply_model(prepare_output_layer)
        self.llm.reset_prefix_cache()

    def generate(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], settings: dict[str, Any]
    ) -> list[tuple[list[int], str, list[float]]]:
        """Return each prompt's response ids, finish reason and the ids' log-probabilities."""
        sampling = [self.vllm.SamplingParams(seed=seed, logprobs=0, **settings) for seed in seeds]
        outputs = [output.outputs[0] for output in self._run(prompts, sampling)]
        return [(list(o.token_ids), str(o.finish_reason), _sampled_logprobs(o)) for o in outputs]

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return for each position of each prompt the log-probabilities of its token and of the most probable one."""
        scoring = self.vllm.SamplingParams(temperature=0.0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        return [
            [None if at is None else {token: entry.logprob for token, entry in at.items()} for at in o.prompt_logprobs]
            for o in self._run(prompts, [scoring] * len(prompts))
        ]

    def _run(self, prompts: Sequence[list[int]], sampling: Sequence[Any]) -> list[Any]:
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], list(sampling), use_tqdm=False)


def _sampled_logprobs(output: Any) -> list[float]:
    return [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]


def main(connection: Connection) -> None:
    """Start the engine that the first message describes, then answer requests until the connection is closed."""
    host: Any = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            if name == "start":
                host, value = VLLMHost(**arguments), None
            else:
                value = getattr(host, name)(**arguments)
        except Exception as error:
            traceback.print_exc()
            connection.send((False, f"{type(error).__name__}: {error}"))
        else:
            connection.send((True, value))


def end_with(parent: int) -> None:
    """Kill this process, and the workers of vLLM that it started, once process `parent` is gone.

    A request in progress would go on for as long as it takes, with the memory that the next run needs.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    closed = threading.Event()
    # A run that was killed between two requests ends nothing itself. Registered first, this comes after vLLM's own clean-up.
    atexit.register(lambda: os.killpg(0, signal.SIGKILL) if closed.is_set() else None)
    main(Connection(int(sys.argv[1])))
    closed.set()
