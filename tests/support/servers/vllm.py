"""A started vLLM engine, and a suite whose models vLLM runs on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

from harness.config.models import Chat
from harness.engines.backend import EngineSite
from harness.engines.engine import Engine, Sampling
from harness.engines.hf import HFEngine
from harness.engines.vllm import VLLMEngine
from harness.engines.vllm_backend import VLLM
from harness.evaluation.evaluator import ServedCheckpoint
from harness.lm.checkpoints import Loaded, weights_digest
from tests.support.models import micro_suite

CHATML = Chat(template="chatml")
PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [30, 31, 32, 33, 34, 35]]


def start(folder: Path, log: Path, **settings: Any) -> VLLMEngine:
    """Return a started engine whose log shows vLLM's resolved options: importing TRL makes vLLM log only errors."""
    with mock.patch.dict(os.environ, VLLM_LOGGING_LEVEL="INFO"):
        return VLLMEngine(folder, VLLM.model_validate(settings), EngineSite("cpu", "float32", 1, log))


def wide_suite() -> dict[str, Any]:
    """Return the micro suite with heads of a width that vLLM's attention has on a CPU."""
    return json.loads(json.dumps(micro_suite()).replace('"head_dim": 16', '"head_dim": 32'))


def subject(folder: Path, engine: VLLMEngine | None = None) -> ServedCheckpoint:
    return ServedCheckpoint(folder, weights_digest(folder), CHATML, "float32", "cpu", engine)


def check_special_stop_string(engine: Engine, student: Loaded) -> None:
    """Assert that an engine with the student's weights ends answers at a special token as transformers does.

    The token is no stop token here, only a stop string, as for a base model whose tokenizer has one more stop token.
    """
    renderer = student.renderer
    prompt = renderer.encode_prompt(
        renderer.render([{"role": "user", "content": "what is the weather in paris?"}], add_generation_prompt=True)
    )
    string = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids[0])
    assert string in renderer.tokenizer.all_special_tokens
    sampling = Sampling(48, temperature=0, stop_strings=(string,))
    (expected,) = HFEngine(student.model, renderer.tokenizer).generate([prompt], sampling)
    assert expected.finish == "stop"
    assert expected.tokens[-1] == renderer.stop_ids[0]
    (found,) = engine.generate([prompt], sampling)
    assert (found.tokens, found.finish) == (expected.tokens, "stop")
