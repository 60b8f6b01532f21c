"""The generated tasks: splits that cannot overlap, the same items everywhere, references that grade as they should."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from harness.errors import TaskError
from tasks.math import arithmetic
from tasks.splits import disjoint_splits, in_test
from tasks.tools import requests
from tests.support.task_files import ROOT, SUMS, TINY, tiny_task

TOOLS = [name for name in TINY if name not in SUMS]

DIGEST = """
import hashlib, json
from tasks.math.arithmetic import chains
from tasks.tools.requests import tool_requests
sizes = {"train_size": 50, "test_size": 20, "data_seed": 7}
splits = [chains(operations=3, **sizes), tool_requests(family="calendar", **sizes)]
print(hashlib.sha256(json.dumps([s[k].to_list() for s in splits for k in ("train", "test")]).encode()).hexdigest())
"""


@pytest.mark.parametrize("name", TINY)
def test_splits_have_their_sizes_and_share_nothing(name: str):
    task = tiny_task(name)
    sizes = task.config.metadata
    train, test = task.training_docs(), task.test_docs()
    assert (len(train), len(test)) == (sizes["train_size"], sizes["test_size"])
    assert len(set(train["prompt"]) | set(test["prompt"])) == len(train) + len(test)
    assert not set(train["target"]) & set(test["target"])


@pytest.mark.parametrize("name", TINY)
def test_references_grade_one_and_spoiled_ones_zero(name: str):
    task = tiny_task(name)
    for doc in [*task.test_docs().to_list(), *task.training_docs().to_list()[:200]]:
        assert set(task.process_results(doc, [doc["target"]]).values()) == {1.0}
        for spoiled in _spoiled(doc["target"]):
            assert task.process_results(doc, [spoiled])["strict"] == 0.0, spoiled


def _spoiled(target: str) -> list[str]:
    """Return answers that are each wrong in one place."""
    if not target.startswith("{"):
        return [f"{target}9", f"{target}#", target.partition("#")[0], ""]
    call = json.loads(target)
    changed = [{**call, "arguments": {**call["arguments"], key: "wrong"}} for key in call["arguments"]]
    return [target[:-2], target + target, *map(json.dumps, [*changed, {**call, "name": "other"}]), ""]


def test_items_are_the_same_in_every_process():
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_generated_items_do_not_change_unnoticed():
    docs = [[task.training_docs().to_list(), task.test_docs().to_list()] for task in map(tiny_task, TINY)]
    digest = hashlib.sha256(json.dumps(docs).encode()).hexdigest()[:16]
    assert digest == "60155c47ee07778a", "the tiny tasks' items changed: raise their `version` and pin the new digest"


def test_another_data_seed_gives_other_items_on_the_same_sides():
    sizes = {"train_size": 300, "test_size": 60}
    first, second = (arithmetic.chains(operations=3, data_seed=seed, **sizes) for seed in (1, 2))
    assert first["train"]["prompt"] != second["train"]["prompt"]
    assert not set(first["train"]["prompt"]) & set(second["test"]["prompt"])


@pytest.mark.parametrize(
    ("name", "operations"), [("tiny_short_sums", 2), ("tiny_arithmetic", 3), ("tiny_long_sums", 4)]
)
def test_every_written_step_is_true_and_within_range(name: str, operations: int):
    for doc in tiny_task(name).training_docs():
        written, _, result = doc["target"].partition("#")
        steps = written.split(";")
        assert len(steps) == operations
        assert all(eval(step.replace("=", "==")) for step in steps)
        assert all(0 <= int(step.partition("=")[2]) <= 40 for step in steps)
        assert eval(doc["prompt"]) == int(result) == int(doc["answer"])


def test_arithmetic_grades_result_and_steps_apart():
    doc = {"target": "3+5=8;8+8=16;16-8=8#8", "answer": "8"}
    assert arithmetic.process_results(doc, [" 3+5=9#8 "]) == {"strict": 1, "steps": 0, "parsed": 1}
    assert arithmetic.process_results(doc, ["8"]) == {"strict": 0, "steps": 0, "parsed": 0}
    assert arithmetic.process_results(doc, ["#8#"]) == {"strict": 0, "steps": 0, "parsed": 0}
    assert arithmetic.process_results({**doc, "answer": "0"}, ["#0"])["strict"] == 1


def test_sizes_beyond_the_words_are_refused_with_what_there_is():
    with pytest.raises(TaskError, match=r"train_size is 99999, .*\b\d+ distinct train items"):
        requests.tool_requests(family="weather", train_size=99999, test_size=10, data_seed=0)
    with pytest.raises(TaskError, match="test_size is 0"):
        arithmetic.chains(operations=2, train_size=10, test_size=0, data_seed=0)
    with pytest.raises(TaskError, match="family 'wether' is not one of"):
        requests.tool_requests(family="wether", train_size=1, test_size=1, data_seed=0)


@pytest.mark.parametrize("family", requests.FAMILIES)
def test_every_tool_has_at_least_1500_distinct_requests(family: str):
    splits = requests.tool_requests(family=family, train_size=1500, test_size=200, data_seed=3)
    assert len(set(splits["train"]["prompt"])) == 1500


@pytest.mark.parametrize("name", TINY)
def test_every_test_item_is_independent_of_the_others(name: str):
    docs = tiny_task(name).test_docs()
    assert len(set(docs["target"])) >= 0.75 * len(docs)
    assert len(set(docs["target"])) == len(docs) or name not in TOOLS


@pytest.mark.parametrize("name", TOOLS)
def test_the_test_items_have_nearly_all_words_so_that_words_are_not_sampled(name: str):
    """Items would have to be clustered by a word if the test set had only some of them, as it has only some of the calls."""
    calls = [json.loads(doc["target"])["arguments"] for doc in tiny_task(name).test_docs()]
    for key, words in requests.FAMILIES[name.removeprefix("tiny_")].arguments.items():
        assert len({call[key] for call in calls}) >= 0.95 * len(words), key


def test_repeated_items_are_dropped():
    stream = [(str(i % 40), {"prompt": str(i % 40)}) for i in range(400)]
    test_keys = [str(i) for i in range(40) if in_test(str(i))]
    splits = disjoint_splits(stream, train_size=40 - len(test_keys), test_size=len(test_keys))
    assert sorted(splits["test"]["prompt"]) == sorted(test_keys)
