r"""The paper's data: local copies of the hub's layout load, the last valid box is graded, what cannot be loaded is named."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from harness.errors import TaskError
from tasks.math.paper.problems import last_valid_box, process_results, splits
from tests.support.paper_files import write_paper_data
from tests.support.task_files import TASKS, load_task

FILES = sorted((TASKS / "math/paper").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_paper_data(tmp_path_factory.mktemp("paper"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_task_loads_local_copies_and_grades_its_references(path: Path, data: Mapping[str, str]):
    task = load_task(path.stem, data=data)
    docs = [*task.test_docs(), *(task.training_docs() if task.has_training_docs() else [])]
    assert docs
    for doc in docs:
        assert task.process_results(doc, [task.doc_to_target(doc)]) == {"strict": 1, "parsed": 1, "timed_out": 0}
        assert "boxed" not in doc["prompt"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_source_is_pinned_and_every_file_names_its_licence(path: Path):
    config = load_yaml(path)
    sources = [source for split in config["dataset_kwargs"].values() for source in split]
    assert all(len(source["revision"]) == 40 for source in sources)
    assert all(source["repository"].split("/")[-1].lower() in path.read_text().lower() for source in sources)
    assert config["metadata"]["licence"]


def test_the_math_stage_is_tested_on_the_three_competitions(data: Mapping[str, str]):
    task = load_task("deepmath", data=data)
    assert {doc["source"] for doc in task.test_docs()} == {"aime24", "aime25", "hmmt_feb25"}
    assert {doc["source"] for doc in task.training_docs()} == {"deepmath"}


def test_a_warm_up_takes_finished_answers_of_its_domain(data: Mapping[str, str]):
    targets = [doc["target"] for doc in load_task("openthoughts", data=data).training_docs()]
    assert targets == [r"<think>2 + 2</think> It is \boxed{4}."]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{1} then \boxed{}", "1"),
        (r"\boxed{\frac{1}{2}} so", r"\frac{1}{2}"),
        (r"\boxed{", ""),
        (r"\boxed{\boxed{3}} and \boxed{", "3"),
        (r"\boxed{7} " + r"\boxed{" * 20_000, "7"),
        ("the answer is 3", ""),
        ("", ""),
    ],
)
def test_the_last_valid_box_is_the_answer(text: str, held: str):
    assert last_valid_box(text) == held


@pytest.mark.parametrize(
    ("response", "strict", "parsed"),
    [(r"\boxed{073}", 1, 1), (r"\boxed{74}", 0, 1), ("73", 0, 0), (r"\boxed{73} \boxed{", 1, 1)],
)
def test_grades(response: str, strict: int, parsed: int):
    grades = process_results({"answer": "73"}, [response])
    assert (grades["strict"], grades["parsed"], grades["timed_out"]) == (strict, parsed, 0)


SOURCE = {
    "name": "amc23",
    "repository": "a/b",
    "revision": "0" * 40,
    "split": "test",
    "problem": "question",
    "answer": "answer",
}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"problem": "?", "answer": "1"}, "amc23 row 0: found answer, problem; "),
        ({"question": "?", "answer": ""}, "an answer in `answer`"),
    ],
)
def test_rows_of_another_shape_are_refused(row: dict[str, Any], sentence: str, tmp_path: Path):
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError) as refusal:
        splits(test=[SOURCE], data={"amc23": str(tmp_path)})
    assert sentence in str(refusal.value)


def test_a_source_that_cannot_be_loaded_names_the_repository_and_the_key_for_a_local_copy(tmp_path: Path):
    with pytest.raises(TaskError) as refusal:
        splits(test=[SOURCE], data={"amc23": str(tmp_path / "absent")})
    assert "a/b at revision 000" in str(refusal.value)
    assert "--set data.amc23=FOLDER" in str(refusal.value)
