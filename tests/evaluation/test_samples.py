"""What a cell keeps of each item: its id, what was asked and answered, how the answer ended, and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.evaluation import Evaluation
from harness.engines.engine import Completion, Sampling
from harness.evaluation import hf_model
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import evaluate_checkpoint
from harness.lmeval.documents import item_id
from harness.lmeval.library import TaskLibrary
from tests.support.evaluation import DOC, settled, subject, unwritten
from tests.support.models import write_task

COLUMNS = {
    "item_id",
    "cluster",
    "sample",
    "prompt",
    "target",
    "response",
    "finish",
    "tokens",
    "score",
    "outcome",
    "strict",
    "parsed",
}


class ScriptedAnswers:
    """Stands in for the engine of a model that answers each of four questions in its own way."""

    # by the prompt's last word: right, wrong, not parsable, cut off, cut off but right
    ANSWERS = (("0", "stop"), ("7", "stop"), ("?", "stop"), ("33", "length"), ("4", "length"), ("5\n", "stop"))

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.tokenizer = tokenizer

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        found: list[Completion] = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt, skip_special_tokens=True)
            answer, finish = self.ANSWERS[int(next(c for c in text if c.isdigit()))]
            ending = [self.tokenizer.eos_token_id] if finish == "stop" else []
            done: Any = finish
            found.append(Completion([*self.tokenizer.encode(answer), *ending], done))
        return found


@pytest.fixture
def scripted(student_folder: Path, shared: SharedCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellResult:
    """The cell of a made-up task whose six answers are scripted."""
    monkeypatch.setattr(hf_model, "HFEngine", ScriptedAnswers)
    write_task(tmp_path / "task")
    library = TaskLibrary([tmp_path / "task"])
    return evaluate_checkpoint(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)[
        "made_up"
    ]


@pytest.mark.pitfall(
    "an answer that was cut off counts as a wrong answer",
    area="lm-eval",
    guard=(
        "`harness/evaluation/scoring.py` keeps the finish reason and counts truncated, unparsed and wrong answers "
        "separately"
    ),
    evidence="the finish reason is ignored",
)
def test_outcomes_tell_apart_wrong_unparsed_and_truncated(scripted: CellResult):
    expected = ["correct", "wrong", "unparsed", "truncated", "correct", "correct"]
    assert scripted.samples["outcome"].tolist() == expected
    assert scripted.summary.outcomes == {"correct": 3, "wrong": 1, "unparsed": 1, "truncated": 1}
    assert scripted.summary.score == pytest.approx(3 / 6)
    assert scripted.summary.metrics == {"strict": pytest.approx(3 / 6), "parsed": pytest.approx(5 / 6)}
    assert scripted.summary.n == 6


@pytest.mark.pitfall(
    "lm-eval's model classes return only text, so nothing shows whether an answer ended by itself",
    area="lm-eval",
    guard="`harness/evaluation/answering.py` keeps each answer's finish reason and length from the engine",
    evidence="every answer is recorded as finished",
)
def test_samples_keep_what_was_asked_answered_and_how_it_ended(scripted: CellResult, tmp_path: Path):
    samples = scripted.samples
    assert set(samples.columns) == COLUMNS
    assert samples["target"].tolist() == ["0", "1", "2", "3", "4", "5"]
    assert samples["response"].tolist() == ["0", "7", "?", "33", "4", "5"]  # "5" ends before its stop string
    assert samples["finish"].tolist() == ["stop", "stop", "stop", "length", "length", "stop"]
    assert samples["tokens"].tolist() == [2, 2, 2, 2, 1, 3]  # stop token included
    docs = TaskLibrary([tmp_path / "task"]).load("made_up").test_docs()
    assert samples["item_id"].tolist() == [item_id(doc) for doc in docs]


def test_a_cell_read_back_is_the_cell_that_was_made(scripted: CellResult, shared: SharedCells):
    found = shared.get(scripted.summary.keys)
    assert found is not None
    assert unwritten(found) == unwritten(scripted)
    pd.testing.assert_frame_equal(found.samples, scripted.samples)


def test_identical_documents_keep_ids_of_their_own(student_folder: Path, shared: SharedCells, tmp_path: Path):
    write_task(tmp_path / "task", docs={"train": [DOC], "test": [DOC, DOC, {"prompt": "say 2", "target": "2"}, DOC]})
    library = TaskLibrary([tmp_path / "task"])
    cells = evaluate_checkpoint(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)
    base, other = item_id(DOC), item_id({"prompt": "say 2", "target": "2"})
    assert cells["made_up"].samples["item_id"].tolist() == [base, f"{base}#2", other, f"{base}#3"]


def test_item_ids_are_the_same_for_every_checkpoint(
    student_folder: Path, teacher_folder: Path, library: TaskLibrary, shared: SharedCells
):
    ids = [
        evaluate_checkpoint(subject(folder), settled(library, "tiny_weather"), library, Evaluation(limit=5), shared)[
            "tiny_weather"
        ]
        .samples["item_id"]
        .tolist()
        for folder in (student_folder, teacher_folder)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 5
