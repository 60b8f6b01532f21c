"""The lease on an S3-like server (moto) by s3fs: pip install s3fs 'moto[server]'; skipped where they are not installed."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from harness.errors import InUseError
from tests.support.lease_holder import VALID, holders, lease_on
from tests.support.servers.s3 import bucket


@pytest.fixture
def url() -> Generator[str]:
    with bucket() as url:
        yield f"{url}/suite/opd/default/seed0"


def test_processes_on_one_bucket_hold_the_lease_one_at_a_time(url: str):
    with holders() as start:
        processes = [start(url, f"machine {number}") for number in range(3)]
        for process in processes:
            process.go()
        said = sorted(process.line() for process in processes)
        assert said[-1] == "held"
        assert [sentence.split(":")[0] for sentence in said[:-1]] == ["InUseError"] * 2, said
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
