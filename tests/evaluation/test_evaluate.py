"""The evaluator: answers, settings and prompts equal stock lm-eval's, and no random stream is disturbed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config.evaluation import Evaluation
from harness.engines.backend import HF
from harness.engines.vllm_backend import VLLM
from harness.engines.vllm_server import VLLMServer
from harness.errors import TaskError
from harness.evaluation.cell_cache import SharedCells
from harness.evaluation.evaluator import evaluate_checkpoint
from harness.evaluation.hf_model import HarnessHFLM
from harness.lm.checkpoints import load_checkpoint
from harness.lmeval.checks import check_test_prompts
from harness.lmeval.library import TaskLibrary
from tests.support.evaluation import (
    CHATML,
    CHOICES,
    OWN_METRIC,
    float32_spec,
    settled,
    stock_answers,
    subject,
    write_choices,
)
from tests.support.models import dense_logprobs, write_task


@pytest.mark.slow
def test_greedy_answers_equal_those_of_lm_evals_own_model_class(
    student_folder: Path, teacher_folder: Path, library: TaskLibrary, shared: SharedCells
):
    names, different = ["tiny_weather", "tiny_currency", "tiny_reminder"], set[str]()
    for folder in (student_folder, teacher_folder):
        tasks = settled(library, *names)
        cells = evaluate_checkpoint(subject(folder), tasks, library, Evaluation(limit=12, batch_size=5), shared)
        for task in tasks:
            expected = stock_answers(folder, task, library, 12)
            assert cells[task.name].samples["response"].tolist() == expected
            different |= set(expected)
    assert len(different) > 10, "answers must vary for this to test anything"


def test_answers_end_before_a_stop_string_as_lm_evals_do(
    student_folder: Path, library: TaskLibrary, shared: SharedCells
):
    (task,) = settled(library, "tiny_weather", until=['","'])
    samples = evaluate_checkpoint(subject(student_folder), [task], library, Evaluation(limit=6), shared)[
        "tiny_weather"
    ].samples
    assert samples["response"].tolist() == stock_answers(student_folder, task, library, 6)
    assert not samples["response"].str.contains('","').any()
    assert (samples["finish"] == "stop").any()


def test_the_prompts_are_those_that_lm_eval_sends(student_folder: Path, library: TaskLibrary, shared: SharedCells):
    (task,) = settled(library, "tiny_weather")
    renderer = load_checkpoint(student_folder, float32_spec(), "cpu").renderer
    samples = evaluate_checkpoint(subject(student_folder), [task], library, Evaluation(limit=3), shared)[
        "tiny_weather"
    ].samples
    assert samples["prompt"].tolist() == [task.render(doc, renderer) for doc in task.test_docs(3)]


@pytest.mark.pitfall(
    "simple_evaluate reseeds python, numpy and torch, so training after it in the same process draws the same "
    "numbers whatever its seed",
    area="lm-eval",
    guard="`harness/evaluation/evaluator.py` restores the state of every generator",
    evidence="the states are not restored",
)
def test_evaluation_gives_every_random_generator_its_state_back(
    student_folder: Path, library: TaskLibrary, shared: SharedCells
):
    tasks = settled(library, "tiny_weather")
    _seed_everything()
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    _seed_everything()
    evaluate_checkpoint(subject(student_folder), tasks, library, Evaluation(limit=2), shared)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def _seed_everything() -> None:
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)


@pytest.mark.pitfall(
    "lm-eval's seed does not reach the engine, so every evaluation draws the same answers",
    area="lm-eval",
    guard="`harness/evaluation/answering.py` seeds the engine's draws",
    evidence="the engine's draws have a fixed seed",
)
def test_sampled_answers_depend_on_the_evaluations_seed(student_folder: Path, library: TaskLibrary, tmp_path: Path):
    def answers(seed: int, where: str) -> list[str]:
        tasks = settled(library, "tiny_weather", do_sample=True, temperature=2.0)
        shared = SharedCells(tmp_path / where)
        cells = evaluate_checkpoint(subject(student_folder), tasks, library, Evaluation(limit=4, seed=seed), shared)
        return cells["tiny_weather"].samples["response"].tolist()

    torch.manual_seed(1)
    first = answers(1, "a")
    torch.manual_seed(2)
    assert answers(1, "b") == first
    assert answers(2, "c") != first


def test_a_multiple_choice_probe_is_scored_by_the_models_likelihoods(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    rows = write_choices(tmp_path)
    library = TaskLibrary([tmp_path])
    task = library.load("made_up")
    cell = evaluate_checkpoint(subject(student_folder), [task], library, Evaluation(), shared)["made_up"]
    loaded, expected = load_checkpoint(student_folder, float32_spec(), "cpu"), list[float]()
    for row in rows:
        prompt = loaded.renderer.encode_prompt(task.render(row, loaded.renderer))
        scores: list[float] = []
        for answer in row["answers"]:
            ids = loaded.renderer.tokenizer.encode(answer, add_special_tokens=False)
            logq = dense_logprobs(loaded.model, prompt + ids)[len(prompt) - 1 : -1]
            scores.append(logq.gather(-1, torch.tensor(ids)[:, None]).sum().item())
        expected.append(float(int(np.argmax(scores)) == row["label"]))
    assert cell.samples["score"].tolist() == expected
    assert 0 < sum(expected) < 6
    assert set(cell.samples["outcome"]) == {"correct", "wrong"}


@pytest.mark.pitfall(
    "a caller that evaluates without checking the prompts first has its prompts cut",
    area="lm-eval",
    guard="`harness/evaluation/answering.py` refuses a prompt that would be cut",
    evidence="the refusal is removed",
)
def test_a_prompt_that_would_be_cut_is_refused(student_folder: Path, library: TaskLibrary, shared: SharedCells):
    tasks = settled(library, "tiny_weather", max_gen_toks=120)
    with pytest.raises(TaskError, match=r"may take 120, .*context of 128\b"):
        evaluate_checkpoint(subject(student_folder), tasks, library, Evaluation(limit=2), shared)


def test_a_scored_text_that_would_be_cut_is_refused_by_the_evaluator_and_before_it(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    choice = {"grader": None, **CHOICES, "doc_to_target": 0, "metric_list": [{**OWN_METRIC[0], "metric": "acc"}]}
    rows = [{"prompt": "x y z " * 100, "target": "a"}, {"prompt": "say", "target": "b"}]
    write_task(tmp_path, docs={"train": rows, "test": rows}, metadata={"version": 1.0}, **choice)
    library = TaskLibrary([tmp_path])
    task, renderer = library.load("made_up"), load_checkpoint(student_folder, float32_spec(), "cpu").renderer
    with pytest.raises(TaskError, match=r"task made_up: its longest prompt .*continuation .*context of 128"):
        evaluate_checkpoint(subject(student_folder), [task], library, Evaluation(), shared)
    with pytest.raises(TaskError, match=r"task made_up: its longest test prompt .*continuation .*context of 128"):
        check_test_prompts([task], renderer, 128, 1, None)
    check_test_prompts([task], renderer, 2000, 1, None)
    texts = ["".join(each) for asked in task.asked(task.test_docs(None), renderer) for each in json.loads(asked)]
    longest = max(len(renderer.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    for beyond in (HF.beyond_context, VLLM.beyond_context, VLLMServer.beyond_context):
        check_test_prompts([task], renderer, longest - beyond, beyond, None)
        with pytest.raises(TaskError, match=rf"{longest} tokens, more than the {longest - 1} that .*context of "):
            check_test_prompts([task], renderer, longest - beyond - 1, beyond, None)


def test_a_scored_text_may_fill_the_context_and_its_last_token(student_folder: Path):
    model: Any = HarnessHFLM(student_folder, CHATML, device="cpu", dtype="float32", batch_size=1, seed=0)
    model._asked_by = {("", ""): "t"}
    (score,) = model._loglikelihood_tokens([(("", ""), [5] * 120, [6] * 9)], disable_tqdm=True)
    assert np.isfinite(score[0])
    with pytest.raises(TaskError, match=r"130 tokens .*cut to the 129\b"):
        model._loglikelihood_tokens([(("", ""), [5] * 120, [6] * 10)], disable_tqdm=True)
    assert len(model._loglikelihood_tokens([(None, [5] * 128, [6])], disable_tqdm=True)) == 1


def test_generation_settings_that_would_be_ignored_are_refused(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    kwargs = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8, "num_beams": 4}
    write_task(tmp_path, generation_kwargs=kwargs)
    library = TaskLibrary([tmp_path])
    with pytest.raises(TaskError, match="generation_kwargs num_beams"):
        evaluate_checkpoint(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)


def test_requests_with_other_settings_are_answered_with_their_own(student_folder: Path):
    model = HarnessHFLM(student_folder, CHATML, device="cpu", dtype="float32", batch_size=4, seed=0)

    class Request:
        task_name = "t"

        def __init__(self, doc_id: int, budget: int) -> None:
            self.doc_id = doc_id
            self.args = ("say", {"until": ["\n"], "temperature": 0.0, "max_gen_toks": budget})

    model.generate_until([Request(0, 1), Request(1, 2), Request(2, 1)])
    assert [model.answers["t", i][0].tokens for i in range(3)] == [1, 2, 1]
