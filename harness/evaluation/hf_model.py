"""lm-eval's `hf` model class with our generation engine, which also returns finish reasons and token counts.

All but `generate_until` and the chat template is lm-eval's code. The stock class gives the same greedy answers
(tests/evaluation/test_evaluate.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from harness.config.models import Chat
from harness.engines.backend import HF
from harness.engines.hf import HFEngine
from harness.evaluation.answering import Answering
from harness.lm.checkpoints import OWN_CODE, read_renderer

# lm-eval registers the class through an untyped decorator, which hides its members from a type checker.
StockHFLM: Any = HFLM


class HarnessHFLM(Answering, StockHFLM):
    """A checkpoint as lm-eval's `hf` model, see `Answering`."""

    beyond_context = HF.beyond_context

    def __init__(
        self,
        checkpoint: Path,
        chat: Chat,
        *,
        device: str,
        dtype: str,
        batch_size: int,
        seed: int,
        on_task: Callable[[str], None] = lambda _: None,
    ) -> None:
        StockHFLM.__init__(
            self, pretrained=str(checkpoint), device=device, dtype=dtype, batch_size=batch_size, **OWN_CODE
        )
        engine = HFEngine(self.model, self.tokenizer, batch_size)
        made_with = {"engine": "hf", "device": device.split(":")[0], "dtype": dtype, "batch_size": batch_size}
        self.answer_with(engine, read_renderer(checkpoint, chat, self.tokenizer), made_with, seed, on_task)
