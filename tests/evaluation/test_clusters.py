"""Clusters: which items depend on each other, as a task's file names it and as samples and summaries store it."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.base import digest
from harness.evaluation.answering import Answer
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.groups import TaskGroup, group_cell
from harness.evaluation.keys import grading_key
from harness.evaluation.scoring import sample_rows, summary_of
from harness.lmeval.documents import item_id
from harness.lmeval.grader_source import grader_source, references
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from tests.support.evaluation import write_choices
from tests.support.models import write_task

DOCS = {
    "train": [{"prompt": "say 1", "target": "1", "topic": "one"}],
    "test": [
        {"prompt": "say 1", "target": "1", "topic": "one"},
        {"prompt": "tell 1", "target": "1", "topic": "one"},
        {"prompt": "say 2", "target": "2", "topic": "two"},
        {"prompt": "say 3", "target": "3", "topic": ""},
    ],
}


def made_up(folder: Path, cluster: str | None) -> Task:
    harness = {"metric": "strict"} if cluster is None else {"metric": "strict", "cluster": cluster}
    write_task(folder, docs=DOCS, metadata={"version": 1, "harness": harness})
    return TaskLibrary([folder]).load("made_up")


def rows(task: Task) -> pd.DataFrame:
    """Return the rows of a task whose items are all answered right, two answers each."""
    logged: list[dict[str, Any]] = [
        {"filter": "none", "doc": doc, "doc_id": i, "metrics": ["strict", "parsed"], "strict": 1.0, "parsed": 1.0,
         "target": doc["target"], "arguments": [(doc["prompt"], {})]}
        for i, doc in enumerate(task.test_docs())
    ]  # fmt: skip
    return sample_rows(
        task, logged, {(task.name, i): [Answer(d["target"], "stop", 1)] * 2 for i, d in enumerate(task.test_docs())}
    )


@pytest.mark.parametrize("cluster", ["topic", "{{topic}}"])
def test_items_of_one_cluster_share_its_value_and_one_without_a_value_stands_alone(tmp_path: Path, cluster: str):
    task = made_up(tmp_path, cluster)
    samples = rows(task)
    alone = item_id(task.test_docs()[3])
    assert list(samples["cluster"]) == ["one", "one", "one", "one", "two", "two", alone, alone]
    assert summary_of("made_up", "strict", samples).clusters == 3


def test_without_a_cluster_each_document_is_one_of_its_own(tmp_path: Path):
    samples = rows(made_up(tmp_path, None))
    assert list(samples["cluster"]) == list(samples["item_id"])
    summary = summary_of("made_up", "strict", samples)
    assert summary.clusters == summary.n == 4


def test_clusters_are_part_of_the_grading_key_only_where_a_file_names_them(tmp_path: Path):
    tasks = {name: made_up(tmp_path / str(name), name) for name in (None, "topic", "prompt")}
    keys = {name: grading_key(task, task.test_docs()) for name, task in tasks.items()}
    assert len(set(keys.values())) == 3
    plain, docs = tasks[None], tasks[None].test_docs()
    assert keys[None] == digest([grader_source(plain), [item_id(doc) for doc in docs], *references(plain, docs)])


def test_a_groups_items_keep_their_tasks_clusters_and_old_cells_count_each_item(tmp_path: Path):
    samples = rows(made_up(tmp_path, "topic"))
    cell = CellResult(summary_of("t", "strict", samples).model_copy(update={"weights": "w", "seed": 0}), samples)
    old = CellResult(cell.summary, samples.drop(columns="cluster"))
    group = TaskGroup("g", ("t", "old"), "strict", by_size=True)
    found = group_cell(group, {"t": cell, "old": old}).samples.drop_duplicates("item_id")
    assert list(found["cluster"])[:3] == ["t/one", "t/one", "t/two"]
    assert list(found["cluster"])[4:] == list(found["item_id"])[4:]


def test_the_grading_key_names_the_function_that_grades(tmp_path: Path):
    (tmp_path / "graders.py").write_text(
        "def strict(doc, results):\n    return {'strict': 0.0, 'parsed': 1.0}\n"
        "def lenient(doc, results):\n    return {'strict': 1.0, 'parsed': 1.0}\n"
    )
    keys = set()
    for name in ("strict", "lenient"):
        file = write_task(tmp_path, docs=DOCS, metadata={"version": 1, "harness": {"metric": "strict"}})
        text = file.read_text()
        own = [line for line in text.splitlines() if line.startswith("process_results")]
        changed = f"process_results: !function graders.{name}"
        file.write_text(text.replace(own[0], changed) if own else f"{text}\n{changed}\n")
        keys.add(grader_source(TaskLibrary([tmp_path]).load("made_up")))
    assert len(keys) == 2


def test_a_task_that_lm_eval_grades_keeps_its_key_whatever_other_tasks_name(tmp_path: Path):
    write_choices(tmp_path)
    task = TaskLibrary([tmp_path]).load("made_up")
    parts = ["", str(task.config.filter_list), str(task.config.metric_list), task.metric]
    assert grader_source(task) == hashlib.sha256("\0".join(parts).encode()).hexdigest()
