"""Rollouts of a model in training from an engine with its own weights, which get the model's before every call."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.engines.engine import CheckpointEngine, Completion, Sampling, answer_all
from harness.engines.handed_over import own_prefix, remove_abandoned
from harness.lm.checkpoints import save_model

SHARED_MEMORY = Path("/dev/shm")


class StudentEngine:
    """An `Engine` that answers with the weights that `model` has at the time of the call.

    An engine on the same GPU, or one that takes weights over the network, gets the tensors themselves. Any other gets a
    checkpoint: in shared memory, if there is one and the weights take less than half of its free space, else in the system's
    folder of temporary files.
    """

    def __init__(self, engine: CheckpointEngine, model: Any) -> None:
        self.engine, self.model = engine, model
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
            remove_abandoned(place)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Give the engine the current weights and return its completions; see `Engine`."""
        return self.begin(prompts, sampling)()

    def begin(self, prompts: Sequence[list[int]], sampling: Sampling) -> Callable[[], list[Completion]]:
        """Give the engine the current weights and begin to answer; return a function that waits for the completions.

        The engine has one set of weights, so a call first waits until the one before it is answered.
        """
        self._worker.submit(lambda: None).result()
        weights = whole_weights(self.model)
        if getattr(self.engine, "takes_tensors", False):
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            engine: Any = self.engine
            engine.take({name: tensor for name, tensor in weights.items() if name not in tied})
            return self._worker.submit(answer_all, self.engine, prompts, sampling).result
        folder = tempfile.TemporaryDirectory(dir=_folder_with_room(weights), prefix=own_prefix())
        try:
            save_model(self.model, Path(folder.name), state_dict=weights)
            self.engine.load(Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise
        return self._worker.submit(self._answer, folder, prompts, sampling).result

    def _answer(
        self, folder: tempfile.TemporaryDirectory[str], prompts: Sequence[list[int]], sampling: Sampling
    ) -> list[Completion]:
        with folder:
            return answer_all(self.engine, prompts, sampling)


def whole_weights(model: Any) -> dict[str, Tensor]:
    """Return a model's weights by the names of the plain architecture, with LoRA deltas merged into their base weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # takes half a second to import, and most runs do not need it

    weights: dict[str, Tensor] = {}
    tuned = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, tensor in model.state_dict().items():
        layer = next((prefix for prefix in tuned if name.startswith(f"{prefix}.")), None)
        if layer is None:
            weights[name] = tensor
        elif name.startswith(f"{layer}.base_layer."):
            part = name.removeprefix(f"{layer}.base_layer.")
            if part == "weight":
                module: Any = tuned[layer]
                tensor = tensor + sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            weights[f"{layer}.{part}"] = tensor
    return weights


def _folder_with_room(weights: dict[str, Tensor]) -> Path | None:
    """Return the shared memory's folder if it has room, else None: the system's folder of temporary files."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    return SHARED_MEMORY if usable and shutil.disk_usage(SHARED_MEMORY).free > 2 * size else None
