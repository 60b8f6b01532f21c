"""The weights that a transfer sends: tensors in this process, or those of a checkpoint, read one at a time.

vLLM's trainer engine first asks a source for names, dtypes and shapes, then for the tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor, dtype

from harness.errors import ModelError

TensorInfo = tuple[str, dtype, tuple[int, ...]]  # a tensor's name, dtype and shape


class WeightSource(Protocol):
    """Weights by the names of a checkpoint of the architecture."""

    def describe(self) -> list[TensorInfo]:
        """Return name, dtype and shape of every tensor, in the order of iteration."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, on the device that sends it."""
        ...


class TensorWeights:
    """Tensors in this process."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def describe(self) -> list[TensorInfo]:
        """See `WeightSource`."""
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """See `WeightSource`."""
        for name, tensor in self.weights.items():
            yield name, tensor.detach().contiguous()


class CheckpointWeights:
    """The safetensors of a checkpoint's folder, each read to `device` when it is sent."""

    def __init__(self, folder: Path, device: str) -> None:
        self.files, self.device = sorted(folder.glob("*.safetensors")), device
        if not self.files:
            raise ModelError(
                f"{folder} has no safetensors files, the only format that a weight transfer sends; save it in that format"
            )

    def describe(self) -> list[TensorInfo]:
        """See `WeightSource`; reads one tensor at a time for its dtype."""
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._read("cpu")]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """See `WeightSource`."""
        return self._read(self.device)

    def _read(self, device: str) -> Iterator[tuple[str, Tensor]]:
        for file in self.files:
            with safe_open(file, framework="pt", device=device) as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tensors.get_tensor(name)
