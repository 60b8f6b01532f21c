"""Tensors of a snapshot that several processes write together, each its part (torch.distributed.checkpoint)."""

# pyright: standard
# torch.distributed.checkpoint has few types.
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

NUMBER = "#"  # before keys that are numbers, which torch.distributed.checkpoint does not take


def write_shards(folder: Path, state: Mapping[str, Any]) -> None:
    """Write this process's parts of the tensors in nested mappings; all processes must call it."""
    from torch.distributed.checkpoint.state_dict_saver import save  # takes a second to import

    save(_map_keys(state, _worded), checkpoint_id=folder)


def read_shards(folder: Path) -> dict[str, Any]:
    """Return the state that some processes wrote, with whole tensors; any one process may call it."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    whole = folder.with_name(f".{folder.name}.whole")
    try:
        dcp_to_torch_save(folder, whole)
        return _map_keys(torch.load(whole, map_location="cpu", weights_only=True), _numbered)
    finally:
        whole.unlink(missing_ok=True)


def _map_keys(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {change(key): _map_keys(part, change) for key, part in value.items()}
    return value


def _worded(key: Any) -> str:
    return f"{NUMBER}{key}" if isinstance(key, int) else key


def _numbered(key: str) -> int | str:
    return int(key.removeprefix(NUMBER)) if key.startswith(NUMBER) else key
