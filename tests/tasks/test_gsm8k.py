"""GSM8K's graders and loader, on made-up records and on the real ones."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import TaskError
from tasks.math import gsm8k
from tests.support.task_files import SHARED_DATA, load_task, needs_shared_data

RECORD = {"question": "Two bags of 3 pears?", "answer": "There are 2*3 = <<2*3=6>>6 pears.\n#### 6"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    odd = {"question": "Line\u2028break?", "answer": "So $<<1000+200=1200>>1,200.\n#### 1,200"}
    for split in ("train", "test"):
        lines = [json.dumps(record, ensure_ascii=False) for record in (RECORD, odd)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        (" 1,200 ", 1200),
        ("$18", 18),
        ("1.0", 1),
        ("72.", 72),
        ("50%", 50),
        ("-3", -3),
        ("-$5.50", -5.5),
        (".5", 0.5),
    ],
)
def test_numbers_are_read_by_value(text: str, value: float):
    assert gsm8k.number(text) == Decimal(str(value))


@pytest.mark.parametrize("text", ["", ".", "-", "72 pears", "1,2", "1$2", "3/4", "²", "1e5", "--2", "$"])
def test_what_is_not_a_plain_number_is_not_guessed(text: str):
    assert gsm8k.number(text) is None


def test_strict_takes_the_line_after_the_last_marker():
    assert gsm8k.marked_number("#### 3\nno, rather\n#### 4\nbye 5") == 4
    assert gsm8k.marked_number("the answer is 4") is None
    assert gsm8k.marked_number("#### about 4") is None


def test_flexible_takes_the_last_number():
    assert gsm8k.last_number("first 3, then $1,200.50.") == Decimal("1200.5")
    assert gsm8k.last_number("10-4=6, so 10-4") == 4
    assert gsm8k.last_number("it is -4") == -4
    assert gsm8k.last_number("none") is None


def test_grades():
    doc = {"answer": "1200"}
    assert gsm8k.process_results(doc, ["... #### $1,200.0"]) == {"strict": 1, "flexible": 1, "parsed": 1}
    assert gsm8k.process_results(doc, ["it is 1200"]) == {"strict": 0, "flexible": 1, "parsed": 0}
    assert gsm8k.process_results(doc, ["1200\n#### 7"]) == {"strict": 0, "flexible": 0, "parsed": 1}


@given(st.text())
def test_hostile_text_never_raises(text: str):
    assert gsm8k.process_results({"answer": "7"}, [f"{text}####{text}"]).keys() == {"strict", "flexible", "parsed"}


def test_local_records_lose_their_annotations(folder: Path):
    task = load_task("gsm8k", data={"gsm8k": str(folder)})
    doc = task.training_docs()[0]
    assert doc["target"] == "There are 2*3 = 6 pears.\n#### 6"
    assert doc["answer"] == "6"
    assert task.doc_to_text(doc).startswith("Two bags of 3 pears?\n\n")
    assert "####" in task.doc_to_text(doc)
    assert [doc["answer"] for doc in task.test_docs()] == ["6", "1200"]


def test_smoke_trains_and_tests_on_the_same_records(folder: Path):
    task = load_task("gsm8k_smoke", data={"gsm8k": str(folder)})
    assert task.training_docs().to_list() == task.test_docs().to_list()
    assert task.config.metadata["harness"]["memorise"] is True


def test_unusable_files_are_refused_in_one_sentence(folder: Path):
    with pytest.raises(TaskError, match="does not exist"):
        gsm8k.splits(data={"gsm8k": str(folder / "nowhere")})
    (folder / "test.jsonl").write_text('{"question": "q", "answer": "6"}')
    with pytest.raises(TaskError, match="ends #### N"):
        gsm8k.splits(data={"gsm8k": str(folder)})
    (folder / "test.jsonl").write_text('{"question": "q", "answer": "#### six"}')
    with pytest.raises(TaskError, match="no number follows"):
        gsm8k.splits(data={"gsm8k": str(folder)})
    (folder / "test.jsonl").write_text("{")
    with pytest.raises(TaskError, match="not JSON lines"):
        gsm8k.splits(data={"gsm8k": str(folder)})


@pytest.mark.realdata
@needs_shared_data
def test_every_real_reference_scores_one():
    loaded = gsm8k.splits(data={"gsm8k": str(SHARED_DATA / "gsm8k")})
    for split, docs in loaded.items():
        grades = [gsm8k.process_results(doc, [doc["target"]]) for doc in docs.to_list()]
        assert all(grade == {"strict": 1, "flexible": 1, "parsed": 1} for grade in grades), split
        assert not any("<<" in target for target in docs["target"])
    smoke = gsm8k.shortest_records(items=20, data={"gsm8k": str(SHARED_DATA / "gsm8k")})
    assert len(smoke["train"]) == len(smoke["test"]) == 20
