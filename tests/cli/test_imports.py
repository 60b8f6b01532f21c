"""What a command imports: those that read runs load no deep-learning library, those that list things only what they list.

Each command runs in a separate process, because a module that another test imported would hide what it imports.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import reports
from tests.support.reports import study_factory
from tests.support.reports.run_factory import write_run

HEAVY = {"torch", "transformers", "lm_eval", "datasets", "peft", "accelerate", "trl", "sklearn"}
CALL = """
import json, sys
from harness.cli.app import main
sys.argv = ["harness", *json.loads(sys.argv[1])]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print("\\n", json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
IMPORT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print("\\n", json.dumps([0, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def loaded(script: str, arguments: list[str], code: int = 0) -> set[str]:
    """Return which of HEAVY a process imports that ends with an exit code."""
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    ended, modules = json.loads(done.stdout.splitlines()[-1])
    assert ended == code, done.stdout + done.stderr
    return HEAVY & set(modules)


def test_no_module_of_reports_loads_a_deep_learning_library():
    names = [module.name for module in pkgutil.walk_packages(reports.__path__, "reports.")]
    assert "reports.report.build" in names
    assert loaded(IMPORT, names) == set()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of two methods."""
    folder = tmp_path_factory.mktemp("imports") / "runs"
    for adapter in ("opd", "aopd"):
        for seed in (0, 1):
            write_run(folder, adapter, seed)
    return folder / "tiny"


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "run --help",
        "watch {runs} --once",
        "compare {opd} {aopd}",
        "report {runs} --claims aopd",
    ],
)
def test_a_command_that_reads_runs_loads_no_deep_learning_library(command: str, runs: Path):
    words = command.format(runs=runs, opd=runs / "opd", aopd=runs / "aopd").split()
    assert loaded(CALL, words) == set()


def test_rendering_a_study_again_loads_no_deep_learning_library(tmp_path: Path):
    plan = study_factory.study(tmp_path, {"seed": {"title": "Seeds"}})
    study_factory.fill(plan, lambda spec: study_factory.constant(spec, learned=0.8, kept=0.6))
    words = ["study", plan.name, "--render-only", "--out", str(plan.out), "--page", str(tmp_path / "page.md")]
    assert loaded(CALL, words) == set()


def test_adapters_are_listed_without_the_libraries_that_some_of_them_train_with():
    assert loaded(CALL, ["adapters"]) <= {"torch"}


def test_tasks_are_listed_without_models():
    assert loaded(CALL, ["tasks"]) <= {"lm_eval", "datasets"}


@pytest.mark.parametrize(
    "mistake",
    [
        ["--adapter", "aodp"],
        ["--order", "nowhere"],
        ["--set", "training.lr=1"],
        ["--seed", "one"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_command_line_is_refused_before_anything_heavy_loads(mistake: list[str], micro_file: Path):
    assert loaded(CALL, ["sweep", str(micro_file), *mistake], code=2) == set()


def test_a_dry_run_loads_no_model_class_and_no_trainer(micro_file: Path):
    found = loaded(CALL, ["run", str(micro_file), "--adapter", "opd", "--dry-run"])
    assert found <= {"torch", "transformers", "lm_eval", "datasets"}
