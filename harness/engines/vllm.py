"""vLLM as an engine: one process that runs for all stages of a run and takes new weights without a restart.

The process is `harness.engines.vllm_process`. Its output goes to a log file; if it fails, one sentence gives the cause.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.engines.backend import EngineSite
from harness.engines.child_processes import end_group
from harness.engines.engine import Completion, Sampling
from harness.errors import RunError
from harness.lm.checkpoints import OWN_CODE
from harness.lm.seeding import prompt_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from harness.engines.vllm_backend import VLLM

CAUSE = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")
# A process is ended if it does not answer for so long and uses less than this share of one processor.
STALLED_SECONDS, STALLED_SHARE = 600.0, 0.01
SUM_ORDER_OPTIONS = (
    "tensor_parallel_size",
    "enforce_eager",
    "max_num_seqs",
)  # they change the order of sums, so answers


class VLLMEngine:
    """See `CheckpointEngine`; each answer has its own seed, see `prompt_seeds`.

    Raises `RunError` with the root cause if vLLM does not start, fails, or its process is killed.
    """

    def __init__(self, checkpoint: Path, backend: VLLM, site: EngineSite) -> None:
        self.backend, self.site = backend, site
        self.version = version("vllm")
        self.dtype = backend.dtype or site.dtype
        self.options = _options(backend, site, self.dtype)
        self.weights: str | None = None
        self._connection, theirs = Pipe()
        site.log.parent.mkdir(parents=True, exist_ok=True)
        with site.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.engines.vllm_process", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()], env=_environment(backend, site), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        # Only the new process may have this end open: otherwise its death would go unnoticed.
        theirs.close()
        try:
            self._ask("start", model=str(checkpoint), options=self.options)
        except BaseException:
            # The caller gets no engine to close, and a process that is loading does not notice a closed connection.
            self.close()
            raise

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Load a checkpoint's weights; do nothing if `weights` is the digest of those that it already has."""
        if weights is None or weights != self.weights:
            self._ask("load", folder=str(checkpoint))
            self.weights = weights

    @property
    def takes_tensors(self) -> bool:
        """Whether `take` works: on one GPU that this process and vLLM's share."""
        return self.site.device.startswith("cuda") and self.backend.tensor_parallel_size == 1

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Give vLLM tensors by name, which it reads in place in this process's GPU memory (CUDA IPC), without a file."""
        from torch import cuda, multiprocessing  # noqa: F401 - multiprocessing lets connections send tensors

        self.weights = None
        if cuda.is_initialized():
            cuda.synchronize()  # the other process cannot wait for kernels that are still writing
        self._ask("take", weights={name: tensor.detach().contiguous() for name, tensor in weights.items()})
        if cuda.is_initialized():
            cuda.ipc_collect()

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions with the log-probabilities with which they were drawn; see `Engine`."""
        seeds = prompt_seeds(prompts, sampling.seed)
        answers = self._ask("generate", prompts=list(prompts), seeds=seeds, settings=_settings(sampling))
        return [
            Completion(ids, "length" if finish == "length" else "stop", tuple(logprobs))
            for ids, finish, logprobs in answers
        ]

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return for each position the log-probabilities of the prompt's token and of the most probable one."""
        return self._ask("prompt_logprobs", prompts=list(prompts))

    def describe(self) -> dict[str, Any]:
        """Return what determines the answers: version, device, dtype and the options that change the order of sums."""
        return {
            "engine": "vllm",
            "vllm": self.version,
            "device": self.site.device.split(":")[0],
            "dtype": self.dtype,
            **{name: self.options[name] for name in SUM_ORDER_OPTIONS},
        }

    def close(self) -> None:
        """End the process and everything it started; there is nothing to save."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        end_group(self._process)

    def _ask(self, name: str, **arguments: Any) -> Any:
        try:
            self._connection.send((name, arguments))
            self._wait(name)
            succeeded, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunError(self._exit_message()) from error
        if not succeeded:
            raise RunError(f"vLLM failed: {self._cause(str(value))}; its whole output is in {self.site.log}")
        return value

    def _wait(self, name: str) -> None:
        """Wait for an answer; raises `RunError` if the process and its workers have not computed for STALLED_SECONDS.

        An answer itself has no deadline: those of a large evaluation come all together, hours later.
        """
        since, processor_before = time.monotonic(), self._processor_seconds()
        while not self._connection.poll(min(5.0, STALLED_SECONDS)):
            if (waited := time.monotonic() - since) >= STALLED_SECONDS:
                processor_now = self._processor_seconds()
                if processor_now - processor_before < STALLED_SHARE * waited:
                    end_group(self._process)
                    raise RunError(
                        f"vLLM's process did not answer {name!r} and did not compute for {waited:.0f} seconds, so it was "
                        f"ended; its output is in {self.site.log}, and the same command continues from the last snapshot"
                    )
                since, processor_before = time.monotonic(), processor_now

    def _processor_seconds(self) -> float:
        """Return the processor time, in seconds, of the process and of everything it started."""
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += sum(each.cpu_times()[:2])
        return total

    def _cause(self, message: str) -> str:
        """Return vLLM's error message, or the first logged error if the message only refers to a root cause."""
        message = " ".join(message.split())
        if "root cause" not in message.lower():
            return message
        with self.site.log.open("rb") as log:
            log.seek(self._log_start)
            logged = CAUSE.search(log.read().decode("utf-8", errors="replace"))
        return f"{logged[1]}: {logged[2].strip()}" if logged else message

    def _exit_message(self) -> str:
        self._process.wait()
        code = end_group(self._process)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return (
            f"vLLM's process {how}, which happens when memory runs out or someone kills it; its output is in "
            f"{self.site.log}, and the same command continues from the last snapshot"
        )


def _settings(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling settings by vLLM's names; only the given stop tokens end an answer, not the checkpoint's eos."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.stop_strings),
        "ignore_eos": True,
        "detokenize": bool(sampling.stop_strings),
        "skip_special_tokens": False,  # else a special token is dropped before the text is searched for stop strings
    }


def _options(settings: VLLM, site: EngineSite, dtype: str) -> dict[str, Any]:
    """Return the options of `vllm.LLM`.

    On a CPU nothing is compiled, because compilation takes longer than a tiny suite. Prompts are not split into chunks there,
    because vLLM resets a request's seeded generator after a chunk, which CPU generators do not support.
    """
    on_gpu = site.device.startswith("cuda")
    own = {"gpu_memory_utilization": settings.gpu_memory_utilization} if on_gpu else {"enable_chunked_prefill": False}
    return {
        **own,
        **OWN_CODE,
        "dtype": dtype,
        "enforce_eager": settings.enforce_eager or not on_gpu,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_num_seqs": settings.max_num_seqs,
        "max_model_len": settings.max_model_len,
        "seed": settings.seed,
        "disable_log_stats": True,
    }


def _environment(settings: VLLM, site: EngineSite) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(site.threads)} if site.threads else {}
    return {
        **os.environ,
        **threads,
        "VLLM_CPU_KVCACHE_SPACE": f"{settings.cpu_cache_gib}",
        # Parallel runs that each bind their threads to all cores are slower than runs that the system schedules.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONUNBUFFERED": "1",
    }
