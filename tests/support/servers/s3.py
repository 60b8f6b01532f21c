"""An S3-like server (moto) with an empty bucket; a test is skipped where s3fs or moto is not installed."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def bucket() -> Generator[str]:
    """Start the server for this block, point s3fs at it by the environment, and yield the bucket's URL."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[dev]'")
    moto = pytest.importorskip("moto.server", reason="needs moto: pip install -e '.[dev]'")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        name = f"runs-{uuid.uuid4().hex[:8]}"  # moto keeps the buckets of earlier servers of the process
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
    server.stop()
