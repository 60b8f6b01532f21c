"""A light server that speaks the part of vLLM's API that a teacher uses, from a small model's own logits."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch


class FakeServer:
    """Answers `/v1/models`, `/tokenize` and `/v1/completions` for one model, as vLLM 0.31 does.

    With `scores_exact_ids` also `/inference/v1/generate`, which vLLM has with `--enable-scale-out`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str = "teacher", max_logprobs: int = 20, context: int = 128
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_logprobs, self.context = max_logprobs, context
        self.temperature, self.shift = 1.0, 0
        self.scores_exact_ids = False
        self.requests = 0
        self._turn = threading.Lock()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON of a request."""
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "root": self.name, "max_model_len": self.context}]}
        if path == "/health":
            return 200, {}
        if path == "/tokenize":
            return 200, {"tokens": list(self.tokenizer.encode(body["prompt"], add_special_tokens=False))}
        if path == "/inference/v1/generate" and self.scores_exact_ids:
            return self._exact(body)
        if path != "/v1/completions":
            return 404, {"error": {"message": "Not Found"}}
        self.requests += 1
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if body["prompt_logprobs"] > self.max_logprobs:
            asked = f"Requested prompt logprobs of {body['prompt_logprobs']}"
            return 400, {"error": {"message": f"{asked}, which is greater than max allowed: {self.max_logprobs}"}}
        if any(len(ids) >= self.context for ids in body["prompt"]):
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        with self._turn:
            return 200, {"choices": [self._choice(number, ids, body) for number, ids in enumerate(body["prompt"])]}

    @torch.no_grad()
    def _exact(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the log-probabilities of one set of ids at all positions from a first one on, as a file of numpy."""
        ids, asked = body["token_ids"], body["sampling_params"]
        named, start = asked["prompt_logprob_token_ids"], asked["prompt_logprob_start"]
        self.requests += 1
        if len(named) > self.max_logprobs or len(set(named)) != len(named):
            message = f"Requested prompt_logprob_token_ids of length {len(named)}, which is greater than max allowed"
            return 400, {"error": {"message": message}}
        with self._turn:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        logprobs = (logits / self.temperature).log_softmax(-1).roll(self.shift, 0)[start : len(ids) - 1, named]
        file = io.BytesIO()
        np.save(file, logprobs.numpy())
        text = base64.b64encode(file.getvalue()).decode()
        return 200, {"prompt_token_ids": list(ids), "prompt_token_id_logprobs": text, "choices": []}

    @torch.no_grad()
    def _choice(self, index: int, ids: Sequence[int], body: dict[str, Any]) -> dict[str, Any]:
        logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        logprobs = (logits / self.temperature).log_softmax(-1).roll(self.shift, 0)
        prompt = [
            None,
            *(_entries(row, token, body["prompt_logprobs"]) for row, token in zip(logprobs, ids[1:], strict=False)),
        ]
        drawn = logits[-1].log_softmax(-1)
        top = drawn.topk(body.get("logprobs") or 1)
        shown = {
            f"token_id:{token}": value for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        }
        return {
            "index": index, "prompt_token_ids": list(ids), "prompt_logprobs": prompt,
            "logprobs": {"top_logprobs": [shown]} if body.get("logprobs") else None,
        }  # fmt: skip


def _entries(row: torch.Tensor, token: int, top_k: int) -> dict[str, Any]:
    top = row.topk(top_k)
    ranks = dict(zip(top.indices.tolist(), range(1, top_k + 1), strict=True))
    ranks.setdefault(token, int((row > row[token]).sum()) + 1)
    return {str(i): {"logprob": float(row[i]), "rank": rank, "decoded_token": "?"} for i, rank in ranks.items()}


@contextmanager
def serving(app: Any) -> Generator[str]:
    """Serve an object with `answer(path, body)` and yield its address; a status 0 ends the connection without an answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(app))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_at(host: str, port: int, app: Any) -> None:
    """Serve an object with `answer(path, body)` at an address for ever."""
    ThreadingHTTPServer((host, port), _handler(app)).serve_forever()


def _handler(app: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(*app.answer(self.path, None))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._reply(*app.answer(self.path, body))

        def _reply(self, status: int, value: Any) -> None:
            if status == 0:
                self.close_connection = True
                return
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client did not wait

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
