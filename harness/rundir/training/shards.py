"""Write and read a snapshot's tensors in shards, one for each process (torch.distributed.checkpoint)."""

# pyright: standard
# torch.distributed.checkpoint has few types.
from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.lm.ranks import current_ranks
from harness.rundir.files import WHOLE, file_digest, full_disk_named

NUMBER = "#"  # prefix of keys that are numbers: torch.distributed.checkpoint takes only texts
METADATA = ".metadata"  # the first process's list of which shard holds which tensor


def write_shards(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Write this process's parts of the tensors in nested mappings, and return the digests of all processes' files by name.

    All processes of the group must call this. When one of them fails, each raises its error, `RunError` for a full disk.
    """
    from torch.distributed.checkpoint.state_dict_saver import save  # takes a second to import

    with full_disk_named(folder), _own_errors():
        save(_map_keys(state, _to_text), checkpoint_id=folder)
    ranks = current_ranks()
    own = [*folder.glob(f"__{ranks.rank}_*"), *([folder / METADATA] if ranks.rank == 0 else [])]
    gathered = ranks.gather({file.name: file_digest(file) for file in own})
    return {name: digest for digests in gathered for name, digest in digests.items()}


def check_shards(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise `ValueError` for a file of `write_shards` that is missing or that has another digest."""
    if missing := [name for name in digests if not (folder / name).is_file()]:
        raise ValueError(f"{folder.name}/{missing[0]} is missing")
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda name: file_digest(folder / name), digests))
    for (name, expected), digest in zip(digests.items(), found, strict=True):
        if digest != expected:
            raise ValueError(f"{folder.name}/{name} has the digest {digest}, expected {expected}")


def join_shards(folder: Path) -> Path:
    """Write the whole tensors of `write_shards` into one file next to the folder, and return it; one process may call this.

    Raises `RunError` where the disk is full, and what torch raises for a shard that is damaged or missing.
    """
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if not (folder / METADATA).is_file():  # torch would log a traceback before it fails
        raise ValueError(f"{folder.name}/{METADATA} is missing")
    file = folder.with_name(f".{folder.name}{WHOLE}")
    try:
        with full_disk_named(file), _own_errors():
            dcp_to_torch_save(folder, file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file


def read_whole(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Return a file's nested mappings with tensors on the CPU; `mapped` ones take no memory until they are read."""
    return _map_keys(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped), _to_number)


@contextmanager
def _own_errors() -> Generator[None]:
    """Raise the error of a process that failed in place of torch's `CheckpointException`, which is no `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first, _ = error.failures[min(error.failures)]
        raise first from error


def _map_keys(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {change(key): _map_keys(part, change) for key, part in value.items()}
    return value


def _to_text(key: Any) -> str:
    return f"{NUMBER}{key}" if isinstance(key, int) else key


def _to_number(key: Any) -> Any:
    return int(key.removeprefix(NUMBER)) if isinstance(key, str) and key.startswith(NUMBER) else key
