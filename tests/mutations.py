"""Take each pitfall's guard out and see that its test fails: `python -m tests.mutations [NAME...] [--write PAGE]`.

Works in a copy of the tree. A mutation is killed by a test that runs and fails; code that cannot be imported is no proof.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import pytest
import typer
from rich.console import Console
from rich.table import Table

from tests.pitfalls import ROOT, Pitfall, cell, failures_on, read_pitfalls, render

BROKEN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")
LONGEST = 90
OURS = ("harness", "adapters", "reports", "tasks", "tests", "benchmarks")
LIBRARIES = [
    "pytest",
    "torch",
    "transformers",
    "datasets",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "peft",
    "scipy.stats",
]
SECONDS = 900
console = Console(width=160)


@dataclass(frozen=True)
class Outcome:
    """How tests ended: pytest's status, how many passed, and the first failure in one line."""

    status: int
    passed: int
    failure: str

    @property
    def killed(self) -> bool:
        """Whether a test ran and failed, for another reason than code that cannot be loaded."""
        return self.status == 1 and bool(self.failure) and not self.failure.startswith(BROKEN)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="entries of pitfalls.yaml; all without")] = None,
    write: Annotated[Path | None, typer.Option(help="page to write; rows that did not run keep their result")] = None,
) -> None:
    """Try mutations; the status is 1 where one survives."""
    pitfalls = read_pitfalls()
    chosen = [entry for entry in pitfalls if not names or entry.name in names]
    if unknown := set(names or ()) - {entry.name for entry in chosen}:
        raise typer.BadParameter(f"{sorted(unknown)} are not in pitfalls.yaml; expected names of its entries")
    with copied_tree() as tree:
        check_unmutated(chosen, tree)
        outcomes = {entry.name: try_mutation(entry, tree) for entry in chosen}
    console.print(as_table(chosen, outcomes))
    killed = {name: cell(outcome.failure) for name, outcome in outcomes.items() if outcome.killed}
    console.print(f"{len(killed)} of {len(chosen)} mutations killed")
    if write is not None:
        others = [entry for entry in pitfalls if entry not in chosen]
        failures = {**failures_on(write.read_text(encoding="utf-8") if write.is_file() else "", others), **killed}
        write.write_text(render([entry for entry in pitfalls if entry.name in failures], failures), encoding="utf-8")
    raise typer.Exit(len(killed) < len(chosen))


@contextmanager
def copied_tree() -> Generator[Path]:
    """Give a copy of all files that git tracks or would track, and an environment to test it in."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder) / "tree"
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        # Without byte code: a file that changes twice in a second would be taken for unchanged.
        os.environ.update(
            PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1", LM_HARNESS_CACHE_PATH=str(tree.parent / "lm-eval"),
            HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false",
        )  # fmt: skip
        yield tree


def check_unmutated(pitfalls: Sequence[Pitfall], tree: Path) -> None:
    """Stop where a test does not pass as the code is; those of one marker run together."""
    for marker in dict.fromkeys(entry.marker for entry in pitfalls):
        tests = sorted({entry.test for entry in pitfalls if entry.marker == marker})
        console.print(f"{len(tests)} tests ({marker or 'fast'}) without a mutation")
        outcome = run_tests(tests, tree)
        if outcome.status or outcome.passed < len(tests):
            console.print(
                f"pytest ended with status {outcome.status}, {outcome.passed} of {len(tests)} passed; all must pass "
                f"before anything is taken out: {outcome.failure or 'some were skipped'}"
            )
            raise typer.Exit(2)


def try_mutation(entry: Pitfall, tree: Path) -> Outcome:
    """Run an entry's test with its guard taken out, and put the files back."""
    before = {edit.file: (tree / edit.file).read_text(encoding="utf-8") for edit in entry.mutation}
    try:
        for edit in entry.mutation:
            text = (tree / edit.file).read_text(encoding="utf-8")
            assert text.count(edit.find) == 1, f"{entry.name}: {edit.find!r} must stand in {edit.file} exactly once"
            (tree / edit.file).write_text(text.replace(edit.find, edit.replace), encoding="utf-8")
        outcome = run_tests([entry.test], tree)
    finally:
        for name, text in before.items():
            (tree / name).write_text(text, encoding="utf-8")
    console.print(f"{'killed  ' if outcome.killed else 'SURVIVED'} {entry.name}: {outcome.failure}", markup=False)
    return outcome


def run_tests(tests: Sequence[str], tree: Path) -> Outcome:
    """Run tests in the copy, forked from a process that has the libraries in memory: importing them takes longest."""
    shutil.rmtree(tree.parent / "lm-eval", ignore_errors=True)
    report = tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    arguments = ["-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    process = context.Process(target=_pytest_in, args=(tree, arguments))
    process.start()
    process.join(SECONDS * len(tests))
    if process.exitcode is None or not report.is_file():
        process.kill()
        return Outcome(-1, 0, "")
    suite = ElementTree.parse(report).getroot()[0]
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    return Outcome(process.exitcode, passed, failure_of(suite))


def _pytest_in(tree: Path, arguments: list[str]) -> None:
    """Run pytest in a folder with that folder's code, of which nothing is in memory, and say nothing."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.exit(pytest.main(arguments))


def failure_of(suite: ElementTree.Element) -> str:
    """Return the first failure in one short line, free of what differs from run to run."""
    found = next(suite.iter("failure"), None)
    if found is None:
        return ""
    line = (found.get("message") or "failed").strip().splitlines()[0]
    line = re.sub(r"^(\w+\.)+(?=\w+: )| object at 0x[0-9a-f]+|/\S*/", "", line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rstrip()}..."


def as_table(pitfalls: Sequence[Pitfall], outcomes: dict[str, Outcome]) -> Table:
    """Return the outcomes for the terminal."""
    table = Table("entry", "area", "mutation", "outcome", "failure")
    for entry in pitfalls:
        outcome = outcomes[entry.name]
        said = "[green]killed" if outcome.killed else "[red]survived"
        table.add_row(entry.name, entry.area, entry.tried, said, outcome.failure.replace("[", r"\["))
    return table


if __name__ == "__main__":
    typer.run(main)
