"""What commands import: those that read runs load no deep-learning library, and those that list things only what they list.

Commands run in separate processes, because a module that another test imported would hide their own imports. Commands that
may load nothing heavy share one process: what one of them loads is also in the lists of those after it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reports
from tests.support.reports import study_factory
from tests.support.reports.run_factory import write_run

HEAVY = {"torch", "transformers", "lm_eval", "datasets", "peft", "accelerate", "trl", "sklearn", "huggingface_hub"}
CALL = """
import json, sys
from harness.cli.app import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["harness", *words]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    found.append([code, sorted({name.partition(".")[0] for name in sys.modules})])
print("\\n", json.dumps(found))
"""
IMPORT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print("\\n", json.dumps([[0, sorted({name.partition(".")[0] for name in sys.modules})]]))
"""


def called(script: str, arguments: list[Any]) -> list[tuple[int, set[str]]]:
    """Return the exit code of every call of a process, and which of HEAVY the process had imported at its end."""
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [(code, HEAVY & set(modules)) for code, modules in found]


def loaded(*words: str) -> set[str]:
    """Return which of HEAVY a command imports that ends well."""
    ((code, modules),) = called(CALL, [words])
    assert code == 0
    return modules


def test_no_module_of_reports_loads_a_deep_learning_library():
    names = [module.name for module in pkgutil.walk_packages(reports.__path__, "reports.")]
    assert "reports.report.build" in names
    assert called(IMPORT, names) == [(0, set())]


@pytest.mark.slow
def test_a_process_that_hands_out_runs_to_others_loads_no_library_of_models():
    assert called(IMPORT, ["harness.pipeline.sweeps.sweep", "harness.pipeline.sweeps.ray_sweep"]) == [(0, {"torch"})]


@pytest.mark.slow
def test_a_ray_task_sets_the_environment_before_it_imports_what_reads_it():
    assert called(IMPORT, ["harness.pipeline.sweeps.ray_tasks"]) == [(0, set())]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of two methods."""
    folder = tmp_path_factory.mktemp("imports") / "runs"
    for adapter in ("opd", "aopd"):
        for seed in (0, 1):
            write_run(folder, adapter, seed)
    return folder / "tiny"


READING = [
    "--help",
    "--version",
    "run --help",
    "watch {runs} --once",
    "compare {opd} {aopd}",
    "report {runs} --claims aopd",
]
MISTAKES = [["--adapter", "aodp"], ["--order", "nowhere"], ["--set", "training.lr=1"], ["--seed", "one"]]


@pytest.mark.slow
def test_commands_that_read_runs_and_mistakes_in_a_command_line_load_no_deep_learning_library(
    runs: Path, micro_file: Path, tmp_path: Path
):
    plan = study_factory.study(tmp_path, {"seed": {"title": "Seeds"}})
    study_factory.fill(plan, lambda spec: study_factory.constant(spec, learned=0.8, kept=0.6))
    rendering = ["study", plan.name, "--render-only", "--out", str(plan.out), "--page", str(tmp_path / "page.md")]
    reading = [each.format(runs=runs, opd=runs / "opd", aopd=runs / "aopd").split() for each in READING]
    mistaken = [["sweep", str(micro_file), *mistake] for mistake in MISTAKES]
    commands = [*reading, rendering, *mistaken]
    expected = [(words, (2 if words in mistaken else 0, set())) for words in commands]
    assert list(zip(commands, called(CALL, commands), strict=True)) == expected


def test_adapters_are_listed_without_the_libraries_that_some_of_them_train_with():
    assert loaded("adapters") <= {"torch"}


def test_tasks_are_listed_without_models():
    assert loaded("tasks") <= {"lm_eval", "datasets", "huggingface_hub"}


@pytest.mark.slow
def test_a_dry_run_loads_no_model_class_and_no_trainer(micro_file: Path):
    found = loaded("run", str(micro_file), "--adapter", "opd", "--dry-run")
    assert found <= {"torch", "transformers", "lm_eval", "datasets", "huggingface_hub"}
