r"""Records with boxed answers: what a line may hold, what is refused, and the task that `harness tasks check` passes."""

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TaskError
from harness.lmeval.library import TaskLibrary
from harness.pipeline.task_check import check_task
from harness.terminal.console import SafeConsole
from tasks.math.boxed_records import splits
from tests.support.task_files import TASKS, boxed_folder, load_task


def written(folder: Path, *lines: Any, name: str = "test") -> dict[str, str]:
    """Write lines, as JSON where they are not text, and return the `data` that names their folder."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {"math_boxed": str(folder)}


def documents(data: Mapping[str, str], split: str = "test") -> Sequence[Mapping[str, str]]:
    return splits(records="math_boxed", data=data)[split].to_list()


def test_a_record_becomes_a_prompt_and_a_reference_that_ends_in_its_box(tmp_path: Path):
    worked = {
        "problem": "Half of 1?",
        "answer": r"\frac{1}{2}",
        "solution": r"It is $\boxed{\frac{1}{2}}$.",
        "level": 1,
    }
    (doc,) = documents(written(tmp_path, worked))
    assert doc["prompt"].startswith("Half of 1?\n\n")
    assert r"\boxed{}" in doc["prompt"]
    assert doc["target"] == worked["solution"]
    assert doc["answer"] == worked["answer"]


@pytest.mark.parametrize(
    ("record", "answer", "target"),
    [
        ({"answer": 73}, "73", r"The final answer is \boxed{73}."),
        ({"answer": r"$\boxed{7}$"}, "7", r"The final answer is \boxed{7}."),
        ({"answer": "7", "solution": "3 + 4"}, "7", "3 + 4\n\nThe final answer is \\boxed{7}."),
        ({"answer": "7", "solution": r"\boxed{7.0}"}, "7", "\\boxed{7.0}\n\nThe final answer is \\boxed{7}."),
        ({"solution": r"So $\boxed 7$."}, "7", r"So $\boxed 7$."),
    ],
)
def test_answers_in_other_shapes(record: dict[str, Any], answer: str, target: str, tmp_path: Path):
    (doc,) = documents(written(tmp_path, {"problem": "?", **record}))
    assert (doc["answer"], doc["target"]) == (answer, target)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "test.jsonl line 1: not JSON"),
        ("[1]", "line 1: found list, expected an object"),
        ({"question": "?", "answer": "1"}, "answer, question; expected `problem` and"),
        ({"problem": "?"}, "`solution` whose last box"),
        ({"problem": "?", "answer": ""}, "expected `problem` and `answer`"),
        ({"problem": "?", "answer": True}, "expected `problem` and `answer`"),
        ({"problem": "?", "answer": "{1"}, "braces of the answer '{1'"),
        ({"problem": "?", "answer": "1}"}, "braces of the answer '1}'"),
        ("", "test.jsonl is empty"),
    ],
)
def test_unusable_records_are_refused_in_one_sentence(line: Any, sentence: str, tmp_path: Path):
    with pytest.raises(TaskError) as refusal:
        documents(written(tmp_path, line))
    assert sentence in str(refusal.value)


def test_missing_files_are_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(TaskError, match=r"no data\.math_boxed; .*folder"):
        splits(records="math_boxed", data={"gsm8k": "elsewhere"})
    with pytest.raises(TaskError, match=r"test\.jsonl does not exist"):
        splits(records="math_boxed", data={"math_boxed": str(tmp_path)})


def test_without_training_records_the_task_evaluates(tmp_path: Path):
    data = written(tmp_path, {"problem": "?", "answer": "1"})
    assert documents(data, "train") == []
    assert len(load_task("math_boxed", data=data).test_docs()) == 1


def test_another_set_is_a_file_that_includes_this_one(tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    text = f"include: {TASKS}/math/math_boxed.yaml\ntask: contest\ndataset_kwargs: {{records: contest}}\n"
    (own / "contest.yaml").write_text(text)
    task = TaskLibrary([own], {"contest": str(boxed_folder(tmp_path))}).load("contest")
    (doc, _) = task.test_docs()
    assert task.grade(doc, r"\boxed{2.5}") == {"strict": 1, "flexible": 1, "parsed": 1, "timed_out": 0}
    assert task.metric == "strict"


def test_harness_tasks_check_passes(tmp_path: Path):
    output = StringIO()
    console = SafeConsole(file=output, width=200)
    assert check_task(console, "math_boxed", [], [f"math_boxed={boxed_folder(tmp_path)}"])
    assert "math_boxed: grader passes, 0 traps" in output.getvalue()
