"""Let a vLLM server take new weights in place: `--worker-extension-cls harness.engines.vllm_worker.WeightsInPlace`.

vLLM's `reload_weights` silently skips an output layer that is tied to the embeddings, because checkpoints do not contain it.
This extension reloads the weights and then prepares that layer, in one call. It imports only the standard library, because
vLLM's workers load it.
"""

from __future__ import annotations

import json
import os
from typing import Any


class WeightsInPlace:
    """Methods that vLLM adds to its workers and that `/collective_rpc` calls."""

    def take_weights(self: Any, folder: str) -> None:
        """Load a checkpoint of the same architecture from a folder that the server sees."""
        if not os.access(folder, os.R_OK | os.X_OK):
            # vLLM would take the path for the name of a repository.
            raise FileNotFoundError(f"the server does not see the folder {folder}, or may not read it")
        self.reload_weights(weights_path=folder)
        prepare_output_layer(self.get_model())

    def describe_transfer(self: Any) -> dict[str, str]:
        """Return the backend of vLLM's weight transfer with which the server was started; empty if there is none."""
        config = self.vllm_config.weight_transfer_config
        return {"backend": config.backend if config else ""}

    def describe_server(self: Any) -> dict[str, str]:
        """Return what the server was started with: dtype, kind of log-probabilities, and the model's configuration as JSON."""
        model = self.vllm_config.model_config
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "config": json.dumps(model.hf_config.to_dict(), default=str),
        }

    def prepare_after_transfer(self: Any) -> None:
        """Prepare the output layer after a weight transfer, which skips it like a reload from a folder."""
        prepare_output_layer(self.get_model())


def prepare_output_layer(model: Any) -> None:
    """Prepare the output layer again after new weights were loaded.

    vLLM's reload skips a layer that is tied to the embeddings, because checkpoints do not contain it. On a CPU vLLM would then
    silently go on using a packed copy of the old weights.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)
