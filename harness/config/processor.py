"""Whether this machine multiplies in bfloat16 in hardware: what `autocast: auto` in a suite stands for.

Without such instructions a CPU emulates them: a product of a small model then takes 20 to 30 times as long as in float32.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from harness.errors import ConfigError

CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # in /proc/cpuinfo: of x86, x86, and ARM
AMPERE = 8.0  # the compute capability of the first GPUs with bfloat16


def has_bfloat16(device: str) -> bool:
    """Return whether a suite's `device` multiplies in bfloat16 in hardware on this machine.

    With several GPUs all that this process may see have to. Raises `ConfigError` where the driver does not answer.
    """
    seen = [] if device == "cpu" else _visible(_gpu_capabilities(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    _, _, number = device.partition(":")
    chosen = seen[int(number) :][:1] if number else seen
    return min(chosen) >= AMPERE if chosen else cpu_has_bfloat16()


def _visible(capabilities: list[float], named: str | None) -> list[float]:
    """Return the capabilities of the GPUs that CUDA_VISIBLE_DEVICES names by number; all where it is unset or has UUIDs."""
    names = [part.strip() for part in (named or "").split(",")]
    if named is None or any(name and not name.isdigit() and name != "-1" for name in names):
        return capabilities
    return [capabilities[int(name)] for name in names if name.isdigit() and int(name) < len(capabilities)]


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
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            "nvidia-smi did not answer in 30 seconds, so what `autocast: auto` stands for is not known; write "
            "`autocast: bfloat16` or `autocast: null`"
        ) from error
    except (OSError, ValueError):
        return []
