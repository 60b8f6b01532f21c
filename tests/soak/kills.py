"""Runs that are killed at random moments and continued: each ends with the numbers of an undisturbed one."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

from harness.config.run_spec import RunSpec
from tests.soak.forked_runs import finish_run, go_on, start_run
from tests.soak.outcomes import Outcomes

COUNTED = (
    "SIGKILL at a random moment, then the same command; compared are weights, step logs, rollouts, scores and answers."
)


def kill_runs(spec: RunSpec, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Kill `count` runs of a spec, each once, and continue each."""
    draw, found = random.Random(seed), Outcomes("kills", COUNTED)
    undisturbed = replace(spec, out=folder / "undisturbed")
    errors = folder / "errors.txt"
    assert finish_run(undisturbed, errors) == "", errors.read_text()
    shutil.rmtree(undisturbed.out)
    started = time.monotonic()
    assert finish_run(undisturbed, errors) == "", errors.read_text()
    seconds = time.monotonic() - started
    for number in range(count):
        killed = replace(spec, out=folder / f"killed-{number}")
        process = start_run(killed, errors)
        process.join(draw.uniform(0, seconds))
        process.kill()
        process.join()
        result, said = go_on(killed, undisturbed, errors)
        found.add(result, f"kill {number}: {said}")
        shutil.rmtree(killed.out)
    return found
