"""Power cuts: a copy of the file below an ext4 file system, taken while a run writes there, is what the disk held then.

The run writes to a file system in a loop device. What its pages had not reached the device yet is not in the copy, as after a
power cut. The copy is mounted, which replays its journal, and the same command goes on there. It needs root and loop devices.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.config.run_spec import RunSpec
from tests.soak.forked_runs import finish_run, go_on, start_run
from tests.soak.outcomes import Outcomes

MIB = 64
COUNTED = "a copy of the file below ext4 at a random moment, mounted, then the same command; compared as for kills."
# With `writeback` the journal holds names and sizes only, so that a file may appear before its content.
OPTIONS = ("loop,commit=1,data=ordered", "loop,commit=1,data=writeback")


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a loop device."""
    try:
        with mounted(new_image(folder / "probe.img", 8), folder / "probe", OPTIONS[0]):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def cut_power(spec: RunSpec, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Take `count` copies at random moments of runs of a spec, two of each, and continue the run in each copy."""
    draw, found = random.Random(seed), Outcomes("power cuts", COUNTED)
    undisturbed = replace(spec, out=folder / "undisturbed")
    errors = folder / "errors.txt"
    assert finish_run(undisturbed, errors) == "", errors.read_text()
    started = time.monotonic()
    shutil.rmtree(undisturbed.out)
    assert finish_run(undisturbed, errors) == "", errors.read_text()
    seconds = time.monotonic() - started
    for number in range(0, count, 2):
        options = OPTIONS[number // 2 % len(OPTIONS)]
        image = new_image(folder / "disk.img", MIB)
        moments = sorted(draw.uniform(0, 1.2 * seconds) for _ in range(min(2, count - number)))
        copies = [folder / f"copy-{place}.img" for place in range(len(moments))]
        with mounted(image, folder / "disk", options) as disk:
            begun = time.monotonic()
            process = start_run(replace(spec, out=disk / "runs"), errors)
            for moment, copy in zip(moments, copies, strict=True):
                time.sleep(max(0.0, begun + moment - time.monotonic()))
                _copy_at_once(image, copy)
            process.kill()
            process.join()
        for copy in copies:
            with mounted(copy, folder / "disk", options) as disk:
                resumed = replace(spec, out=disk / "runs")
                result, said = go_on(resumed, undisturbed, errors)
                found.add(result, f"cut {number}: {said}")
            copy.unlink()
    return found


def new_image(path: Path, mib: int) -> Path:
    """Write a file that holds an empty ext4 file system."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(mib * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path)], check=True)
    return path


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Generator[Path]:
    """Mount an image in this block."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", options, str(image), str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _copy_at_once(image: Path, copy: Path) -> None:
    """Copy the file as it is at one moment: again where the device was written meanwhile."""
    for _ in range(100):
        before = image.stat().st_mtime_ns
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        if image.stat().st_mtime_ns == before:
            return
    raise RuntimeError(f"{image} changed during each of 100 copies")
