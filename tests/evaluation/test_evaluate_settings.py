"""A task's prompts follow its own file and its suite; lm-eval's options and caches have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest

from harness.config.models import Chat
from harness.config.suite import Suite
from harness.engines.engine import Completion, Sampling
from harness.evaluation import hf_model
from harness.lm.checkpoints import load_checkpoint, save_checkpoint
from tests.support.evaluation import THINKING, cells, subject
from tests.support.models import TASK_FILE, write_task


@pytest.mark.pitfall(
    "lm-eval caches requests in site-packages and does not notice that a prompt was edited",
    area="lm-eval",
    guard="`harness/evaluation/evaluator.py` switches the cache off",
    evidence="the cache is on",
)
def test_an_edited_prompt_is_asked_as_it_stands(student_folder: Path, tmp_path: Path):
    served, asked = subject(student_folder), list[str]()
    for template in ("{{prompt}}", "Please {{prompt}}"):
        write_task(tmp_path / "task", doc_to_text=template)
        found = cells(tmp_path / "task", served, tmp_path, "made_up", limit=1)["made_up"]
        asked += found.samples["prompt"].tolist()
    assert [text.count("Please say 0") for text in asked] == [0, 1]


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the budget of each call of the engine."""
    noted: list[int] = []
    original = hf_model.HFEngine.generate

    def spy(self: Any, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        noted.append(sampling.max_new_tokens)
        return original(self, prompts, sampling)

    monkeypatch.setattr(hf_model.HFEngine, "generate", spy)
    return noted


@pytest.mark.pitfall(
    "a number of few-shot examples given to lm-eval changes every task except those whose file sets 0",
    area="lm-eval",
    guard="`harness/evaluation/evaluator.py` passes no number; the task file decides",
    evidence="all tasks get one example",
)
@pytest.mark.pitfall(
    "generation settings given to lm-eval override those of every task",
    area="lm-eval",
    guard="`harness/lmeval/generation_settings.py` sets them on each loaded task, and lm-eval gets none",
    evidence="all tasks get one budget through gen_kwargs",
)
def test_tasks_of_one_evaluation_keep_their_own_examples_and_budgets(
    student_folder: Path, tmp_path: Path, budgets: list[int]
):
    shots = {"num_fewshot": 2, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    write_task(tmp_path, "bare")
    write_task(tmp_path, "shown", **shots, generation_kwargs={**TASK_FILE["generation_kwargs"], "max_gen_toks": 5})
    found = cells(tmp_path, subject(student_folder), tmp_path, "bare", "shown", limit=2)
    asked = {name: cell.samples["prompt"][0].count("say") for name, cell in found.items()}
    assert asked == {"bare": 1, "shown": 3}
    assert budgets == [8, 5]


@pytest.mark.pitfall(
    "a base model may have no chat template, so rendering a chat fails or asks something else",
    area="lm-eval",
    guard="`harness/evaluation/evaluator.py` applies a template only where there is one, as training does",
    evidence="a template is always applied",
)
def test_a_base_model_is_asked_plain_text(micro: Suite, student_folder: Path, tmp_path: Path):
    base = load_checkpoint(student_folder, micro.student, "cpu")
    base.renderer.tokenizer.chat_template = None
    save_checkpoint(base, tmp_path / "base")
    write_task(tmp_path / "task")
    found = cells(tmp_path / "task", subject(tmp_path / "base", Chat()), tmp_path, "made_up", limit=2)["made_up"]
    assert found.samples["prompt"].tolist() == ["say 0", "say 1"]


@pytest.mark.pitfall(
    "the thinking flag does not reach the rendered prompt, and a model thinks although it should not",
    area="lm-eval",
    guard="`harness/lm/chat.py` passes enable_thinking to the template, both for training and for lm-eval",
    evidence="the renderer passes no arguments to the template",
)
@pytest.mark.parametrize(("flag", "text"), [(None, "say 0"), (True, "say 0"), (False, "say 0<no thinking>")])
def test_the_thinking_flag_is_in_the_prompts_that_are_asked(
    flag: bool | None, text: str, student_folder: Path, tmp_path: Path
):
    (tmp_path / "thinking.jinja").write_text(THINKING)
    write_task(tmp_path / "task")
    served = subject(student_folder, Chat(template=str(tmp_path / "thinking.jinja"), enable_thinking=flag))
    found = cells(tmp_path / "task", served, tmp_path, "made_up", limit=1)["made_up"]
    assert found.samples["prompt"].tolist() == [text]


def test_an_evaluation_lists_no_packages(student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: pytest.fail("it starts pip"))
    write_task(tmp_path / "task")
    served = subject(student_folder)
    assert cells(tmp_path / "task", served, tmp_path, "made_up", limit=1)["made_up"].summary.n == 1
