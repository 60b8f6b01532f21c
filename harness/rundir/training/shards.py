"""Write and read a snapshot's tensors in shards, one for each process (torch.distributed.checkpoint)."""

# pyright: standard
# torch.distributed.checkpoint has few types.
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

NUMBER = "#"  # prefix of keys that are numbers: torch.distributed.checkpoint takes only texts


def write_shards(folder: Path, state: Mapping[str, Any]) -> None:
    """Write this process's parts of the tensors in nested mappings; all processes of the group must call this."""
    from torch.distributed.checkpoint.state_dict_saver import save  # takes a second to import

    save(_map_keys(state, _to_text), checkpoint_id=folder)


def read_shards(folder: Path) -> dict[str, Any]:
    """Return the state that `write_shards` wrote, with whole tensors on the CPU; one process may call this alone."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    whole = folder.with_name(f".{folder.name}.whole")
    try:
        dcp_to_torch_save(folder, whole)
        return _map_keys(torch.load(whole, map_location="cpu", weights_only=True), _to_number)
    finally:
        whole.unlink(missing_ok=True)


def _map_keys(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {change(key): _map_keys(part, change) for key, part in value.items()}
    return value


def _to_text(key: Any) -> str:
    return f"{NUMBER}{key}" if isinstance(key, int) else key


def _to_number(key: str) -> int | str:
    return int(key.removeprefix(NUMBER)) if key.startswith(NUMBER) else key
