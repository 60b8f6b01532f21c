"""What memory a phase took at most: of the GPU where the run uses one, else of the process."""

from __future__ import annotations

import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Keeps the highest memory by phase, in bytes; phases may nest, and an outer one holds its inner ones.

    On CUDA it is what this process's tensors took at most, elsewhere the process's resident memory. A child process, such as
    vLLM's or an external command's, is not in it.
    """

    def __init__(self, device: str) -> None:
        self.gpu = torch.device(device) if device.startswith("cuda") else None
        self.peaks: dict[str, int] = {}
        self._open: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        """Count the block's peak to `phase`."""
        self._note()
        self._open.append(phase)
        try:
            yield
        finally:
            self._note()
            self._open.remove(phase)

    @property
    def summary(self) -> dict[str, Any]:
        """Bytes by phase, and whose they are: `gpu` or `process`."""
        return {"of": "process" if self.gpu is None else "gpu", **self.peaks}

    def _note(self) -> None:
        """Give the peak since the last note to all open phases, and start anew."""
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
    """Return the process's peak and set it back where the system allows that: on Linux."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    if not found:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError):  # a container may forbid it: then the peak is that of the process so far
        CLEAR_REFS.write_text("5", encoding="utf-8")
    return found[0]
