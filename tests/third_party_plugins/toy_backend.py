"""A backend from outside: transformers behind the contract of an engine with its own weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.engines.backend import Backend, EngineSite

if TYPE_CHECKING:
    from harness.engines.engine import Completion, Sampling


class Toy(Backend):
    """The settings in the suite's block `toy`."""

    batch_size: int = Field(default=64, gt=0, description="prompts decoded together")
    max_length: int | None = Field(default=None, gt=0, description="null takes the model's own context")

    def context(self, of_model: int) -> int:
        """Return the shorter of `max_length` and the model's own context."""
        return min(of_model, self.max_length or of_model)

    def start(self, checkpoint: Path, site: EngineSite) -> ToyEngine:
        """Load the checkpoint."""
        site.log.parent.mkdir(parents=True, exist_ok=True)
        site.log.write_text(f"started on {checkpoint}\n")
        return ToyEngine(checkpoint, self, site)


class ToyEngine:
    """A separate model, far from the one in training."""

    def __init__(self, checkpoint: Path, backend: Toy, site: EngineSite) -> None:
        self.backend, self.site = backend, site
        self.load(checkpoint)

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Read the checkpoint's weights; in training this is called before every batch of rollouts."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        if (checkpoint / "tokenizer.json").is_file():  # a handover of weights in training comes without it
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Decode with the harness's own loop, so that the answers are those of the default backend."""
        from harness.engines.hf import HFEngine

        return HFEngine(self.model, self.tokenizer, self.backend.batch_size).generate(prompts, sampling)

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return the log-probabilities of a prompt's own tokens and of the most probable ones."""
        import torch

        found: list[list[dict[int, float] | None]] = []
        for prompt in prompts:
            with torch.no_grad():
                logprobs = self.model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
            before = zip(prompt[1:], logprobs[:-1], strict=True)
            at = [{int(row.argmax()): float(row.max()), token: float(row[token])} for token, row in before]
            found.append([None, *at])
        return found

    def describe(self) -> dict[str, Any]:
        """Return what decides the answers."""
        return {"engine": "toy", "version": "1", "batch": self.backend.batch_size}

    def close(self) -> None:
        """Forget the model."""
        del self.model
