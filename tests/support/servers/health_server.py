"""A program that answers /health, says in its output which GPUs it sees, and fails where an option says so."""

from __future__ import annotations

import argparse
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers with the number of its process."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("host", "port", "served-model-name", "max-logprobs", "revision"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--fail", action="store_true")
    asked = parser.parse_args()
    print(asked.model, asked.served_model_name, asked.max_logprobs, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    if asked.fail:
        sys.exit("out of memory, says the server")
    HTTPServer((asked.host, int(asked.port)), Handler).serve_forever()
