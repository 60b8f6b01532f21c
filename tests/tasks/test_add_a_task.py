"""The page docs/add-a-task.md is enough: its files are tasks that pass the check, train a stage and are evaluated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import TaskError
from harness.pipeline.dry_run import print_dry_run
from harness.pipeline.task_check import check_task
from harness.terminal.console import SafeConsole
from tests.support.models import micro_suite, write_yaml
from tests.support.pages import blocks

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-task.md").read_text(encoding="utf-8")
COUNTRIES = {"Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Chile": "Santiago"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's two task files with records like the page's, its paths below this folder."""
    capital, call = map(json.loads, blocks(PAGE, "json"))
    capitals = [capital, *({"country": country, "capital": city} for country, city in COUNTRIES.items())]
    calls = [json.loads(json.dumps(call).replace("Oslo", city)) for city in COUNTRIES.values()]
    for name, rows in (("capitals", capitals), ("home_tools", calls)):
        records = tmp_path / "data" / name
        records.mkdir(parents=True)
        for split, part in (("train", rows[:3]), ("test", rows[3:])):
            (records / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    tasks = tmp_path / "my-tasks"
    tasks.mkdir()
    for text in blocks(PAGE, "yaml"):
        name = re.match(r"# my-tasks/(\w+\.yaml)\n", text)
        assert name is not None, "each file of the page says where it lies"
        (tasks / name[1]).write_text(text.replace("/data/", f"{tmp_path}/data/"), encoding="utf-8")
    return tasks


@pytest.mark.parametrize("name", ["capitals", "home_tools"])
def test_the_pages_tasks_pass_the_check_without_a_trap(name: str, folder: Path):
    console = SafeConsole(width=200, record=True)
    assert check_task(console, name, [folder], [])
    assert f"{name}: grader passes, 0 traps" in console.export_text()


def test_one_file_is_enough_for_a_stage_and_a_probe(folder: Path, tmp_path: Path):
    raw: dict[str, Any] = {**micro_suite(), "stages": ["capitals"], "probes": ["home_tools"], "include": [str(folder)]}
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", raw)))
    console = SafeConsole(width=200, record=True)
    print_dry_run(console, [RunSpec(suite, "opd", 0, out=tmp_path / "runs")])
    printed = console.export_text()
    assert "capitals: 3 test items, 3 independent" in printed
    assert re.search(r"probe\W+home_tools", printed)


@pytest.mark.parametrize(
    ("found", "written", "sentence"),
    [
        (
            "doc_to_text:",
            "doc_to_txt:",
            "unknown key 'doc_to_txt', .*'doc_to_text'",
        ),
        ("max_gen_toks: 16", "max_gen_toks: many", r"generation_kwargs\.max_gen_toks is 'many'"),
        ("max_gen_toks: 16", "max_gen_tokens: 16", "generation_kwargs max_gen_tokens"),
        (
            "{metric: exact_match,",
            "{metric: exact_mach,",
            "'exact_mach', expected 'exact_match'",
        ),
        ("capitals/test.jsonl", "capitals/tests.jsonl", "files that dataset_kwargs names"),
        ("{{country}}", "{{contry}}", r"\('contry' is undefined\)"),
    ],
    ids=["key", "type", "setting", "metric", "file", "field"],
)
def test_a_mistake_in_the_file_is_one_sentence(found: str, written: str, sentence: str, folder: Path):
    file = folder / "capitals.yaml"
    text = file.read_text(encoding="utf-8")
    assert found in text
    file.write_text(text.replace(found, written), encoding="utf-8")
    with pytest.raises(TaskError) as error:
        check_task(SafeConsole(width=200, record=True), "capitals", [folder], [])
    assert re.search(sentence, " ".join(str(error.value).split()))
