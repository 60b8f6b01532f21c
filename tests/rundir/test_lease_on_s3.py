"""The lease on an S3-like server (moto) by s3fs: pip install s3fs 'moto[server]'; skipped where they are not installed."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from harness.errors import InUseError
from tests.support.lease_holder import VALID, holders, lease_on

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("runs")
    yield "s3://runs/suite/opd/default/seed0"
    server.stop()


def test_processes_on_one_bucket_hold_the_lease_one_at_a_time(url: str):
    with holders() as start:
        processes = [start(url, f"machine {number}") for number in range(3)]
        for process in processes:
            process.go()
        said = sorted(process.line() for process in processes)
        assert said[-1] == "held"
        assert all(sentence.startswith("InUseError") for sentence in said[:-1])
        with pytest.raises(InUseError, match="does this run"), lease_on(url).held(lambda _: None):
            pass
        for process in processes:
            process.process.kill()
        began = time.monotonic()
        mine = lease_on(url)
        with mine.held(lambda _: None):
            assert time.monotonic() - began > VALID
            mine.refuse_lost()
            assert mine.number == 2
