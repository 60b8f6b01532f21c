"""Let a vLLM server take new weights in place: `--worker-extension-cls harness.engines.vllm_worker.WeightsInPlace`.

vLLM's `reload_weights` silently skips an output layer that is tied to the embeddings, because checkpoints do not contain it.
This extension reloads the weights and then prepares that layer, in one call. A worker also keeps the tag of its last hand-over
and has none after a start. This module imports only the standard library, because vLLM's workers load it.
"""

from __future__ import annotations

import json
import os
from typing import Any


class WeightsInPlace:
    """Methods that vLLM adds to its workers and that `/collective_rpc` calls."""

    def take_weights(self: Any, folder: str, tag: str = "") -> None:
        """Load a checkpoint of the same architecture from a folder that the server sees; `tag` names the hand-over."""
        self.weights_tag = ""  # until all of them are loaded
        if not os.access(folder, os.R_OK | os.X_OK):
            # vLLM would take the path for the name of a repository.
            raise FileNotFoundError(f"the server does not see the folder {folder}, or may not read it")
        self.reload_weights(weights_path=folder)
        prepare_output_layer(self.get_model())
        self.weights_tag = tag

    def describe_transfer(self: Any) -> dict[str, str]:
        """Return the backend of vLLM's weight transfer with which the server was started; empty if there is none."""
        config = self.vllm_config.weight_transfer_config
        return {"backend": config.backend if config else ""}

    def describe_server(self: Any) -> dict[str, str]:
        """Return the tag of the last hand-over, empty since a start, and what the server was started with.

        That is dtype, kind of log-probabilities, and the model's configuration as JSON.
        """
        model = self.vllm_config.model_config
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "config": json.dumps(model.hf_config.to_dict(), default=str),
            "tag": getattr(self, "weights_tag", ""),
        }

    def announce_transfer(self: Any, tag: str) -> None:
        """Expect weights over the network; `tag` names the hand-over."""
        self.weights_tag, self.announced_tag = "", tag

    def prepare_after_transfer(self: Any, tag: str = "") -> None:
        """Prepare the output layer after a weight transfer, which skips it like a reload from a folder.

        Raises `RuntimeError` in a worker that was started after the transfer was announced.
        """
        if tag != getattr(self, "announced_tag", ""):
            raise RuntimeError("the server was started again while it was getting weights")
        prepare_output_layer(self.get_model())
        self.weights_tag = tag


def prepare_output_layer(model: Any) -> None:
    """Prepare the output layer again after new weights were loaded.

    vLLM's reload skips a layer that is tied to the embeddings, because checkpoints do not contain it. On a CPU vLLM would then
    silently go on using a packed copy of the old weights.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)
