"""Disks that fill while a run writes: one sentence, no partial file, and the same command continues once there is space."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

from harness.config.run_spec import RunSpec
from tests.soak.forked_runs import finish_run, go_on
from tests.soak.outcomes import Outcomes
from tests.soak.power_cuts import mounted, new_image

MIB = 24
COUNTED = "a run on a disk with a random space left, then the same command with space; lost: a partial file stays."


def fill_disks(spec: RunSpec, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Do runs on disks that are too small at first, each with another space left."""
    draw, found = random.Random(seed), Outcomes("full disks", COUNTED)
    undisturbed, errors = replace(spec, out=folder / "undisturbed"), folder / "errors.txt"
    assert finish_run(undisturbed, errors) == "", errors.read_text()
    needed = sum(file.stat().st_size for file in undisturbed.path.rglob("*") if file.is_file())
    for number in range(count):
        with mounted(new_image(folder / "disk.img", MIB), folder / "disk", "loop") as disk:
            own, ballast = replace(spec, out=disk / "runs"), disk / "ballast"
            space = round(draw.uniform(0.02, 1.0) * needed)
            ballast.write_bytes(b"x" * max(0, shutil.disk_usage(disk).free - space))
            errors.unlink(missing_ok=True)
            ended = finish_run(own, errors)
            partial = [path.name for path in own.path.rglob(".*.*") if path.name != ".lock"]
            ballast.unlink()
            result, said = go_on(own, undisturbed, errors)
            if ended.startswith("traceback"):
                found.add("traceback", f"disk {number}, {space} bytes: {ended}")
            elif ended and partial:
                found.add("lost", f"disk {number}, {space} bytes: {partial} stay")
            elif result != "held":
                found.add(result, f"disk {number}, {space} bytes, with space again: {said}")
            else:
                found.add("held" if ended else "had space")
    return found
