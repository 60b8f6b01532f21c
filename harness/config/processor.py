"""Whether this machine multiplies in bfloat16 in hardware: what `autocast: auto` in a suite stands for.

Without such instructions a CPU emulates them: a product of a small model then takes 20 to 30 times as long as in float32.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # in /proc/cpuinfo: of x86, x86, and ARM
AMPERE = 8.0  # the compute capability of the first GPUs with bfloat16


def has_bfloat16(device: str) -> bool:
    """Return whether a suite's `device` (auto, cpu, cuda) multiplies in bfloat16 in hardware on this machine."""
    if device != "cpu" and (capabilities := _gpu_capabilities()):
        return min(capabilities) >= AMPERE
    return cpu_has_bfloat16()


def emulated_bfloat16(device: str, precisions: Iterable[str]) -> str | None:
    """Return a warning where a stage's `training.precision` asks for a bfloat16 that the machine only emulates."""
    narrow = sorted(set(precisions) - {"float32"})
    if not narrow or has_bfloat16(device):
        return None
    return (
        f"training.precision is {', '.join(narrow)}, and this machine has no instructions for bfloat16: training takes many "
        "times as long as with training.precision=float32"
    )


@cache
def cpu_has_bfloat16(described_by: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU does so; False where the system does not say, as on systems other than Linux."""
    try:
        lines = described_by.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(CPU_FLAGS & set(flags.split()))


@cache
def _gpu_capabilities() -> list[float]:
    """Return the compute capability of each GPU that the driver lists; torch need not be loaded for that."""
    if (command := shutil.which("nvidia-smi")) is None:
        return []
    asked = [command, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        return [
            float(line) for line in subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.split()
        ]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
