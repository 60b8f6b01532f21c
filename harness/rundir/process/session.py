"""Record a session of a run: its code, packages and hardware, and the time and memory of its phases."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.rundir.process.secrets import holds_secret, mask_words
from harness.rundir.schema import Git, Session, now

PACKAGES = ("continual-harness", "torch", "transformers", "tokenizers", "datasets", "lm_eval", "accelerate", "numpy")
OPTIONAL = ("peft", "trl", "vllm")  # recorded where they are installed
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def this_session() -> Session:
    """Return this process's session: git commit and uncommitted diff, package versions, hardware, command line."""
    return Session(
        git=_git(Path(__file__).parents[2]),
        packages={
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            **{name: version(name) for name in OPTIONAL if find_spec(name)},
        },
        hardware=_hardware(),
        command=shlex.join(mask_words([Path(sys.argv[0]).name, *sys.argv[1:]])),
        created=now(),
    )


class Timer:
    """Adds up seconds by phase; `whole` is the name of the time since the timer was created.

    A GPU runs behind the host. So on a GPU a phase is timed by events on the GPU, from its first kernel to its last, and only
    reading `seconds` waits for the GPU.
    """

    def __init__(self, *phases: str, whole: str, device: str = "cpu") -> None:
        self.on_gpu = device.startswith("cuda")
        self.started = time.perf_counter()
        self.whole = whole
        self.phases = phases
        self.spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        """Count the block's time for `phase`."""
        start = self._now()
        try:
            yield
        finally:
            self.spans.append((phase, start, self._now()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and in total until now, rounded to 4 digits."""
        if self.on_gpu:
            torch.cuda.synchronize()
        found = dict.fromkeys(self.phases, 0.0)
        for phase, start, end in self.spans:
            found[phase] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        total = time.perf_counter() - self.started
        return {name: round(value, 4) for name, value in {**found, self.whole: total}.items()}

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class PeakMemory:
    """Records the highest memory by phase, in bytes; phases may nest, and an outer phase includes its inner ones.

    On CUDA it is the memory of this process's tensors, elsewhere the resident memory of the process. Child processes, such as
    vLLM's or an external command's, are not included.
    """

    def __init__(self, device: str) -> None:
        self.gpu = torch.device(device) if device.startswith("cuda") else None
        self.peaks: dict[str, int] = {}
        self._open: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        """Count the block's peak for `phase`."""
        self._note()
        self._open.append(phase)
        try:
            yield
        finally:
            self._note()
            self._open.remove(phase)

    @property
    def summary(self) -> dict[str, Any]:
        """Bytes by phase, and under `of` what they are the memory of: `gpu` or `process`."""
        return {"of": "process" if self.gpu is None else "gpu", **self.peaks}

    def _note(self) -> None:
        """Count the peak since the last call for all open phases, and reset it."""
        peak = _process_peak() if self.gpu is None else _gpu_peak(self.gpu)
        for phase in self._open:
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak)


def _gpu_peak(device: torch.device) -> int:
    if not torch.cuda.is_initialized():
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _process_peak() -> int:
    """Return the process's peak in bytes; Linux resets it, so that the next call returns a later peak."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    if not found:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError):  # a container may forbid the reset; the peak is then that since the process began
        CLEAR_REFS.write_text("5", encoding="utf-8")
    return found[0]


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 2**30)
    # Processors and instruction sets round differently, so they build different models from one seed.
    processor = {
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    return {**processor, "cpus": os.cpu_count(), "memory_gib": memory, "gpus": gpus}


def _processor() -> str:
    """Return the name of the processor's model, from /proc/cpuinfo on Linux, elsewhere from Python's platform module."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _git(folder: Path) -> Git:
    """Return commit and uncommitted diff of the checkout that the code runs from; empty for an installed package.

    A diff that may hold a secret is left out, see `harness.rundir.process.secrets`.
    """

    def git(*args: str) -> str:
        # A diff holds the files' bytes, in any encoding. In a container the checkout may belong to another user.
        done = subprocess.run(["git", "-c", "safe.directory=*", *args], cwd=folder, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            return Git()
        diff = git("diff", "HEAD")
        found = Git(commit=git("rev-parse", "HEAD"), dirty=bool(diff))
        if holds_secret(diff):
            return found.model_copy(update={"diff_left_out": "it holds what looks like a secret"})
        return found.model_copy(update={"diff": diff or None})
    except (OSError, subprocess.CalledProcessError):
        return Git()
