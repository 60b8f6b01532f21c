"""An adapter from outside: installed as a separate package, run without a fork, and described correctly in the docs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adapters.trainers.examples import plain_sft
from harness.adapter import make_adapter
from harness.config.suite import AdapterEntry
from tests.support.models import ScriptedEngine, context, example, micro_suite, qwen3, write_yaml
from tests.support.pages import blocks

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "third_party"
PAGE = (ROOT / "docs" / "add-an-adapter.md").read_text(encoding="utf-8")
ENTRIES: dict[str, dict[str, Any]] = {
    "bounded": {"adapter": "bounded_opd", "options": {"bound": 0.1}},
    "unbounded": {"adapter": "bounded_opd", "options": {"bound": 1e9}},
    "opd": {},
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into, with no network and no change to this environment."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(PACKAGE)], check=True)
    return target


def python(installed: Path, *arguments: str) -> str:
    """Run this interpreter with the package on its path and return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_shows_the_package_as_it_is():
    assert blocks(PAGE, "python")[0] == (PACKAGE / "bounded_opd.py").read_text(encoding="utf-8")
    assert blocks(PAGE, "toml")[0] == (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")


def test_every_entry_on_the_page_is_one_that_a_suite_takes(installed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(installed))
    entries = {
        name: entry for block in blocks(PAGE, "yaml") for name, entry in yaml.safe_load(block)["adapters"].items()
    }
    assert {"bounded_tight", "replayed", "held", "near", "factors", "plain_sft"} <= set(entries)
    for name, entry in entries.items():
        make_adapter(name, AdapterEntry.model_validate(entry))


def test_the_public_face_is_enough_for_all_code_of_the_page():
    imported = {
        line.split()[1]
        for block in blocks(PAGE, "python")
        for line in block.splitlines()
        if line.startswith(("from ", "import "))
    }
    assert imported <= {"adapters", "dataclasses", "pydantic", "typing"}


def test_the_pages_method_and_wrapper_conform():
    from adapters import check_adapter, failures

    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(PAGE, "python"):
        exec(block, names)
    quick = ["options are described", "gradient", "accumulation", "masks", "no detached branch", "teacher zeros"]
    assert failures(check_adapter(names["BoundedOPD"](), quick)) == []
    assert (
        failures(check_adapter(names["FirstItems"](of="opd", items=4), ["trains", "accumulation", "masks", "resume"]))
        == []
    )


def test_the_pages_own_trainer_trains_and_logs():
    names: dict[str, Any] = {"__name__": "page"}
    exec(blocks(PAGE, "python")[-1], names)
    log: list[dict[str, Any]] = []
    ctx = context(qwen3(), ScriptedEngine([]), [example([3, 4]), example([5])], {"steps": 2}, log=log)
    before = [parameter.clone() for parameter in ctx.student.parameters()]
    assert names["Shrink"](factor=0.5).train_stage(ctx).steps == 2
    assert all(torch.equal(p, 0.25 * b) for p, b in zip(ctx.student.parameters(), before, strict=True))
    assert log == [{"step": step, "loss": None, "tokens": 3} for step in (0, 1)]


def test_the_page_names_the_placeholders_of_the_external_adapter():
    from adapters.trainers.external import PLACEHOLDERS

    named = set(re.findall(r"^\| `\{(\w+)\}` \|", PAGE, flags=re.MULTILINE))
    assert named == set(PLACEHOLDERS)
    assert plain_sft.__name__ in PAGE


def test_files_that_the_page_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]


@pytest.mark.slow
def test_an_installed_adapter_is_registered_and_runs_without_a_fork(installed: Path, tmp_path: Path):
    raw = {**micro_suite(), "stages": ["tiny_weather"], "adapters": ENTRIES}
    suite = write_yaml(tmp_path / "micro.yaml", raw)
    sweep = (
        "-m",
        "harness.cli.app",
        "sweep",
        str(suite),
        "--no-report",
        "--seed",
        "0",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "runs"),
    )
    python(installed, *sweep)
    weights: dict[str, dict[str, str]] = {}
    for name in ENTRIES:
        folder = tmp_path / "runs" / "micro" / name / "default" / "seed0"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["finished"]
        assert manifest["adapter_config"].get("bound") == ENTRIES[name].get("options", {}).get("bound")
        assert len((folder / "stage_1_tiny_weather" / "train" / "steps.jsonl").read_text().splitlines()) == 2
        weights[name] = manifest["weights"]
    assert len({found["start"] for found in weights.values()}) == 1
    assert weights["unbounded"]["stage_1"] == weights["opd"]["stage_1"], "without a bound it is OPD"
    assert weights["bounded"]["stage_1"] not in {weights["opd"]["stage_1"], weights["bounded"]["start"]}


@pytest.mark.slow
def test_the_installed_adapter_passes_the_conformance_suite(installed: Path):
    output = python(installed, "-m", "harness.cli.app", "adapters", "check", "bounded_opd")
    assert " 0 fails" in output
    listed = python(installed, "-m", "harness.cli.app", "adapters")
    assert "bounded_opd" in listed
    assert "aopd" in listed
