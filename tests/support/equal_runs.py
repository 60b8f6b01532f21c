"""Compare two run directories to the bit: `python -m tests.support.equal_runs RUN OTHER`.

It shows whether a change of the code changed a number: one suite, adapter and seed, run by two commits on one machine. It
compares weights, answers, scores and step logs, and leaves out what names the code, the time or the cost of a run: keys and
seconds. Files and fields that only one of the two has are named and do not count as different: a later commit may write more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

LEFT_OUT = {"seconds", "checksum", "keys", "samples_digest", "started", "finished"}
COMPARED = ("**/model.safetensors", "**/results.json", "**/samples.parquet", "**/steps.jsonl", "**/curve.jsonl")


def main(run: Path, other: Path) -> int:
    """Print how many files are equal, which are not, and what only one run has; return 1 for any difference, else 0."""
    here, there = files_of(run), files_of(other)
    both, alone = sorted(here & there), sorted(here ^ there)
    different: list[str] = []
    fields: set[str] = set()
    for file in both:
        equal, extra = compare_files(run / file, other / file)
        fields |= extra
        different += [] if equal else [str(file)]
    print(f"{len(both) - len(different)} of {len(both)} files are equal to the bit")
    for title, names in (
        ("different", different),
        ("in one run only", alone),
        ("fields of one run only", sorted(fields)),
    ):
        print("".join(f"{title}: {name}\n" for name in names), end="")
    return int(bool(different) or not both)


def files_of(run: Path) -> set[Path]:
    """Return a run's weights, results, answers and logs, by their paths in the run."""
    return {path.relative_to(run) for pattern in COMPARED for path in run.glob(pattern)}


def compare_files(file: Path, other: Path) -> tuple[bool, set[str]]:
    """Return whether two files hold the same numbers, and the fields that only one of them has."""
    if file.suffix == ".safetensors":
        return file.read_bytes() == other.read_bytes(), set()
    if file.suffix == ".parquet":
        return pd.read_parquet(file).equals(pd.read_parquet(other)), set()
    records = list(zip(records_of(file), records_of(other), strict=True))
    extra = {name for one, two in records for name in one.keys() ^ two.keys()}
    return all(one[name] == two[name] for one, two in records for name in one.keys() & two.keys()), extra


def records_of(file: Path) -> list[dict[str, Any]]:
    """Return a JSON file's record, or a log's records, without what is left out."""
    text = file.read_text(encoding="utf-8")
    records = [json.loads(line) for line in ([text] if file.suffix == ".json" else text.splitlines())]
    return [{name: value for name, value in record.items() if name not in LEFT_OUT} for record in records]


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
