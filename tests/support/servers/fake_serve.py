"""`vllm serve` in small: a program that serves a checkpoint through the fake server, `/health` included."""

from __future__ import annotations

import argparse
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.servers.fake_server import FakeServer, serve_at

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    for name in ("host", "port", "served-model-name", "max-logprobs"):
        parser.add_argument(f"--{name}")
    asked = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(asked.path)
    tokenizer = AutoTokenizer.from_pretrained(asked.path)
    serve_at(
        asked.host, int(asked.port), FakeServer(model, tokenizer, asked.served_model_name, int(asked.max_logprobs))
    )
