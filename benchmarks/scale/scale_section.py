"""Measure sweeps over workers, a run over processes, the doctor's estimates, and servers of a teacher and of rollouts.

`python -m benchmarks.scale.scale_section --into benchmarks/RESULTS.md` measures this section alone and writes it into a page.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measure import Measurement
from benchmarks.results_page import cells, cpu_model, table
from benchmarks.scale.doctor_estimates import EVERY, STEPS, estimate_rows
from benchmarks.scale.processes import process_rows
from benchmarks.scale.servers import server_rows
from benchmarks.scale.sweeps import sweep_rows
from harness.rundir.process.session import this_session

TITLE = "## Over processes, servers and workers"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    into: Annotated[Path, typer.Option(help="A page of results; the section replaces its former self, or is added.")],
    runs: Annotated[int, typer.Option(min=0, help="Runs of a sweep; 0 leaves sweeps out.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of everything but sweeps.")] = 3,
) -> None:
    """Measure the section and write it."""
    page = into.read_text(encoding="utf-8") if into.is_file() else "# Benchmarks\n"
    found = section(runs, rounds)
    before, _, after = page.partition(TITLE)
    rest = re.search(r"^## ", after, flags=re.MULTILINE)
    parts = [before.rstrip(), found, after[rest.start() :].rstrip() if rest else ""]
    into.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    typer.echo(found)


def section(runs: int, rounds: int) -> str:
    """Measure and return the section; what is not installed is named in it."""
    before = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="harness-scale-") as folder:
        rows = list(_rows(Path(folder), runs, rounds))
    load = f"{before:.1f} before and {os.getloadavg()[1]:.1f} after"
    header = ["measured", "unit", "ours", "against", "theirs", "ours / theirs (range)"]
    made = this_session()
    commit = f"commit {(made.git.commit or 'unknown')[:12]}" + (" with changes" if made.git.dirty else "")
    notes = [
        f"At {commit}, {made.created}; {made.hardware['cpus']} CPUs ({cpu_model()}), one thread a process. "
        f"Medians of {rounds} rounds in turn; a sweep is done once in each way, models built before.",
        f"The machine's load over five minutes was {load}. If it is above the number of CPUs, other work ran too, and two "
        "processes had less than twice the processor time of one.",
        f"The doctor's estimates are of the suite tiny with OPD, {STEPS} steps in each of 4 stages, a learning curve every "
        f"{EVERY} steps and three profiles; its probe takes 4 steps of each stage. Each is measured once, in processor time.",
        "All other runs are of the tests' micro suite, with two stages. Serial is one process; a worker, or a Ray node of "
        "one core, is a separate process. Time counts its imports of torch and transformers, not the start of Ray itself.",
        *(f"{name} is not installed here, so its rows are missing." for name in ("vllm", "ray") if not _has(name)),
    ]
    return "\n\n".join([TITLE, table(header, [cells(row) for row in rows]), "\n".join(f"- {note}" for note in notes)])


def _rows(folder: Path, runs: int, rounds: int) -> Iterator[Measurement]:
    yield from process_rows(folder, rounds)
    yield from estimate_rows(folder)
    if _has("vllm"):
        yield from server_rows(folder, rounds)
    if runs:
        yield from sweep_rows(folder, runs, on_ray=_has("ray"))


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    app()
