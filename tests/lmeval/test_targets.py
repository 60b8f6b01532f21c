"""What a supervised learner is trained on: the reference as lm-eval would show it, or the text that the task names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.lmeval.library import TaskLibrary
from tests.support.lmeval import made_up, plain_renderer
from tests.support.models import byte_renderer


@pytest.mark.pitfall(
    "a target without its stop token teaches a model never to stop",
    area="lm-eval",
    guard="`harness/lm/chat.py` ends every target with the first stop token",
    evidence="only the target's text is supervised",
)
def test_the_supervised_ids_are_the_reference_and_the_stop_token(library: TaskLibrary):
    renderer = byte_renderer()
    example = library.load("tiny_weather").training_examples(renderer, 1)[0]
    assert renderer.tokenizer.decode(example.target) == example.doc["target"] + "<|im_end|>"
    assert example.target[-1] == renderer.stop_ids[0]
    assert renderer.tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n")


@pytest.mark.pitfall(
    "lm-eval puts target_delimiter before a target, so a base model trained without it learns other tokens than "
    "the evaluation expects",
    area="lm-eval",
    guard="`harness/lmeval/task.py` puts the delimiter before plain-text targets",
    evidence="the delimiter is left out",
)
def test_a_base_models_target_has_the_delimiter_that_lm_eval_puts_before_it(tmp_path: Path):
    task = made_up(tmp_path, target_delimiter=" ")
    plain, chat = plain_renderer(), byte_renderer()
    assert plain.tokenizer.decode(task.training_examples(plain, 1)[0].target) == " 20<|im_end|>"
    assert chat.tokenizer.decode(task.training_examples(chat, 1)[0].target) == "20<|im_end|>"


TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "a field": ({"training_target": "worked"}, "1+1=2"),
    "a template": ({"training_target": "{{worked}}!"}, "1+1=2!"),
}


@pytest.mark.pitfall(
    "doc_to_target may be the bare answer although a model should learn the worked solution",
    area="lm-eval",
    guard="`harness/lmeval/task.py` reads `metadata.harness.training_target`",
    evidence="the key is not read",
)
@pytest.mark.parametrize("kind", TARGETS)
def test_worked_solutions_can_be_the_training_target(kind: str, tmp_path: Path):
    harness, expected = TARGETS[kind]
    doc = {"prompt": "1+1", "target": "2", "worked": "1+1=2"}
    task = made_up(tmp_path, docs={"train": [doc], "test": [doc]}, metadata={"version": 1.0, "harness": harness})
    assert task.training_target(task.training_docs()[0]) == expected


@pytest.mark.pitfall(
    "doc_to_target may be a list of answers or the index of a choice",
    area="lm-eval",
    guard="`harness/lmeval/task.py` trains on the first answer, or on the text of the choice",
    evidence="training uses the index itself",
)
def test_without_one_the_target_is_doc_to_target_or_the_choice_it_points_to(tmp_path: Path):
    bare = {"version": 1.0}
    doc = {"prompt": "1+1", "target": "2", "answers": ["two", "2"], "label": 1}
    docs = {"train": [doc], "test": [doc]}
    text = made_up(tmp_path / "text", docs=docs, metadata=bare)
    several = made_up(tmp_path / "list", docs=docs, metadata=bare, doc_to_target="answers")
    choice = made_up(
        tmp_path / "choice", docs=docs, metadata=bare, doc_to_target="label", doc_to_choice="answers", grader=None,
        output_type="multiple_choice", generation_kwargs=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    assert text.training_target(text.training_docs()[0]) == "2"
    assert several.training_target(several.training_docs()[0]) == "two"
    assert choice.training_target(choice.training_docs()[0]) == "2"
    assert (text.metric, choice.metric) == ("strict", "acc")
