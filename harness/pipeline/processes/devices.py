"""The device, CPU threads, freed memory and GPUs of a process. A sweep imports this before any model; it needs torch alone."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from harness.errors import ModelError
from harness.teachers.server_start import VISIBLE

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
OWN_MAPPING, KEPT = 32 * 2**20, 2**30  # bytes; glibc allows no larger threshold for mappings


def resolve_device(device: str) -> str:
    """Return the device, `cuda` or `cpu` for `auto`; raises `ModelError` for a GPU where torch sees none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device is {device}, but torch sees no GPU; use --set device=cpu")
    return device


def working_device(device: str) -> str:
    """Return the device as `resolve_device` does, for a process that will compute on it: on a GPU it takes memory there.

    Raises `ModelError` for a GPU that this build of torch has no kernels for. A kernel runs on later GPUs of its generation,
    and PTX on all later ones.
    """
    device = resolve_device(device)
    built = torch.cuda.get_arch_list() if device.startswith("cuda") else []
    if not built or not all(each.startswith(("sm_", "compute_")) for each in built):
        return device  # AMD's architectures have other names
    major, minor = torch.cuda.get_device_capability(device)
    for name in built:
        kind, _, number = name.partition("_")
        first, second = int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1])
        if (first == major and second <= minor) or (kind == "compute" and first < major):
            return device
    raise ModelError(
        f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and this build of torch "
        f"{torch.__version__} has kernels for {', '.join(built)}; install a build for this GPU, or use --set device=cpu"
    )


def usable_processors() -> int:
    """Return how many processors this process may use: by its affinity, and by the quota of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def limit_threads(threads: int | None) -> None:
    """Use `threads` CPU threads in this process; more threads than free cores make each step many times slower."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Let this process use freed memory of up to 1 GiB again; on systems without glibc do nothing.

    glibc gives the memory of a large tensor back at once, and the next one's pages are zeroed again. Small models spend a
    twelfth of a training step on that.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    if (named := os.environ.get(VISIBLE)) is not None:
        return [part.strip() for part in named.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]
