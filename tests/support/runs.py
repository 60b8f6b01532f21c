"""The files of a micro run, read as tests compare them, and changed copies of the micro suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.base import digest
from harness.config.load import load_suite
from harness.config.suite import Suite
from harness.rundir.files import CHECKSUM, SAMPLES, file_digest
from harness.rundir.process.progress import Event
from tests.support.models import micro_suite, write_yaml

TASKS = ("tiny_weather", "tiny_currency", "tiny_reminder")
FOLDERS = ("stage_0", "stage_1_tiny_weather", "stage_2_tiny_currency")


def manifest(folder: Path) -> dict[str, Any]:
    """Return a run's manifest, with the provenance of its first session."""
    found = json.loads((folder / "manifest.json").read_text())
    return {**found["sessions"][0], **found}


def steps(folder: Path) -> list[dict[str, Any]]:
    """Return the step logs of all stages, timings aside."""
    lines = [line for stage in FOLDERS[1:] for line in (folder / stage / "train/steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def cells(folder: Path) -> dict[str, Any]:
    """Return all results by stage and task, timings and the checksum of all aside."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("stage_*/eval/*/results.json")):
        results = {
            key: value for key, value in json.loads(path.read_text()).items() if key not in ("seconds", "checksum")
        }
        found[str(path.parent.relative_to(folder))] = results
    return found


def samples(folder: Path) -> pd.DataFrame:
    paths = sorted(folder.glob("stage_*/eval/*/samples.parquet"))
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def changed_suite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Suite:
    raw = micro_suite()
    change(raw)
    return load_suite(str(write_yaml(folder / "micro.yaml", raw)))


def flip_a_byte(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def vouch(file: Path) -> None:
    """Make a JSON file that a test changed vouch for itself, and for the samples next to it, as its writer would."""
    content = {name: value for name, value in json.loads(file.read_text()).items() if name != CHECKSUM}
    if "samples_digest" in content:
        content["samples_digest"] = file_digest(file.with_name(SAMPLES))
    file.write_text(json.dumps({**content, CHECKSUM: digest(content)}))


class StoppedError(Exception):
    """Ends a run from within, as an interruption does."""


def stop_at(point: str) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if f"{event.activity} {event.done}" == point:
            raise StoppedError

    return report
