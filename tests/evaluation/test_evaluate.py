"""The evaluator: stock lm-eval's answers, no answer reused for other weights, no random stream disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from harness.config.evaluation import Evaluation
from harness.config.models import Chat
from harness.config.suite import Suite
from harness.engines.engine import Completion, Sampling
from harness.errors import ModelError, TaskError
from harness.evaluation import evaluator, hf_model, keys
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate
from harness.evaluation.hf_model import HarnessHFLM
from harness.evaluation.keys import make_keys
from harness.evaluation.regrading import regrade
from harness.lm.chat import Renderer
from harness.lm.checkpoints import load, load_renderer, save, weights_digest
from harness.lmeval.checks import check_test_prompts
from harness.lmeval.documents import item_id
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.checkpoint_matrix import evaluate_checkpoints, matrix_table
from harness.rundir.differences import find_differences
from harness.rundir.files import read_cell
from harness.rundir.records.cell_records import CellSummary, EarlierGrade, Keys
from tests.support.evaluation import settled, with_config
from tests.support.models import dense_logprobs, write_task

CHATML = Chat(template="chatml")


def subject(folder: Path, chat: Chat = CHATML) -> ServedCheckpoint:
    return ServedCheckpoint(folder, weights_digest(folder), chat, "float32", "cpu")


@pytest.fixture
def shared(tmp_path: Path) -> SharedCells:
    return SharedCells(tmp_path / "shared")


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts of each call of the engine."""
    counted: list[int] = []
    original = hf_model.HFEngine.generate

    def spy(self: Any, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        counted.append(len(prompts))
        return original(self, prompts, sampling)

    monkeypatch.setattr(hf_model.HFEngine, "generate", spy)
    return counted


class SilentEngine:
    """Stands in for an engine that must not be called."""

    def __init__(self, *_: Any) -> None: ...

    def generate(self, *_: Any) -> list[Completion]:
        raise AssertionError("the engine was called")


def stock_answers(folder: Path, task: Task, library: TaskLibrary, limit: int, **more: Any) -> list[str]:
    """Return the answers of lm-eval's own `hf` model class."""
    stock: Any = HFLM
    model = stock(pretrained=str(folder), device="cpu", dtype="float32", batch_size=5)
    results: Any = simple_evaluate(
        model=model, tasks=[task.lmeval], task_manager=library.manager, limit=limit, apply_chat_template=True,
        fewshot_as_multiturn=True, bootstrap_iters=0, **more,
    )  # fmt: skip
    samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


def test_greedy_answers_equal_those_of_lm_evals_own_model_class(
    student_folder: Path, teacher_folder: Path, library: TaskLibrary, shared: SharedCells
):
    names, different = ["tiny_weather", "tiny_currency", "tiny_reminder"], set[str]()
    for folder in (student_folder, teacher_folder):
        tasks = settled(library, *names)
        cells = evaluate(subject(folder), tasks, library, Evaluation(limit=12, batch_size=5), shared)
        for task in tasks:
            expected = stock_answers(folder, task, library, 12)
            assert cells[task.name].samples["response"].tolist() == expected
            different |= set(expected)
    assert len(different) > 10, "answers must vary for this to test anything"


def test_answers_end_before_a_stop_string_as_lm_evals_do(
    student_folder: Path, library: TaskLibrary, shared: SharedCells
):
    (task,) = settled(library, "tiny_weather", until=['","'])
    samples = evaluate(subject(student_folder), [task], library, Evaluation(limit=6), shared)["tiny_weather"].samples
    assert samples["response"].tolist() == stock_answers(student_folder, task, library, 6)
    assert not samples["response"].str.contains('","').any()
    assert (samples["finish"] == "stop").any()


def test_the_prompts_are_those_that_lm_eval_sends(student_folder: Path, library: TaskLibrary, shared: SharedCells):
    (task,) = settled(library, "tiny_weather")
    renderer = load(student_folder, _spec(), "cpu").renderer
    samples = evaluate(subject(student_folder), [task], library, Evaluation(limit=3), shared)["tiny_weather"].samples
    assert samples["prompt"].tolist() == [task.render(doc, renderer) for doc in task.test_docs(3)]


def _spec() -> Any:
    class Spec:
        dtype = "float32"
        chat = CHATML

    return Spec()


@pytest.mark.pitfall(
    "lm-eval's answer cache knows prompts and settings but not weights, so a later checkpoint gets the answers "
    "of an earlier one and seems to forget nothing",
    area="lm-eval",
    guard="`harness/evaluation/evaluator.py` gives lm-eval no cache",
    evidence="lm-eval gets one cache file for all checkpoints",
)
@pytest.mark.pitfall(
    "a store of answers whose key leaves the weights out returns the answers of another checkpoint",
    area="lm-eval",
    guard="`harness/evaluation/keys.py` puts the digest of the weights into the generation key",
    evidence="the key leaves the weights out",
)
def test_two_checkpoints_never_share_an_answer(
    student_folder: Path, teacher_folder: Path, library: TaskLibrary, shared: SharedCells, generations: list[int]
):
    settings = Evaluation(limit=4)
    first = evaluate(subject(student_folder), settled(library, "tiny_weather"), library, settings, shared)
    second = evaluate(subject(teacher_folder), settled(library, "tiny_weather"), library, settings, shared)
    assert generations == [4, 4]
    one, other = first["tiny_weather"], second["tiny_weather"]
    assert one.summary.keys.generation != other.summary.keys.generation
    assert one.summary.keys.comparability == other.summary.keys.comparability
    assert one.samples["response"].tolist() != other.samples["response"].tolist()


def test_lm_evals_caches_are_never_used_and_would_share_an_answer(
    student_folder: Path,
    teacher_folder: Path,
    library: TaskLibrary,
    shared: SharedCells,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[dict[str, Any]] = []

    def spy(**settings: Any) -> Any:
        asked.append(settings)
        return simple_evaluate(**settings)

    monkeypatch.setattr(evaluator, "simple_evaluate", spy)
    settings, ours, cached = Evaluation(limit=4), list[list[str]](), list[list[str]]()
    for folder in (student_folder, teacher_folder):
        tasks = settled(library, "tiny_weather")
        cells = evaluate(subject(folder), tasks, library, settings, shared)
        ours.append(cells["tiny_weather"].samples["response"].tolist())
        cached.append(stock_answers(folder, tasks[0], library, 4, use_cache=str(tmp_path / "cache")))
    assert [(a["use_cache"], a["cache_requests"]) for a in asked] == [(None, False)] * 2
    assert ours[0] != ours[1]
    assert cached[0] == cached[1] == ours[0], "the trap is gone: lm-eval's cache knows weights now"


@pytest.mark.pitfall(
    "another grader cannot be applied once the answers are gone",
    area="Grading",
    guard="`harness/evaluation/evaluator.py` grades stored answers again instead of generating",
    evidence="stored answers are not looked for",
)
def test_another_grader_grades_stored_answers_and_generates_nothing(
    student_folder: Path, teacher_folder: Path, shared: SharedCells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def cell(name: str, folder: Path = student_folder, **changes: Any) -> CellResult:
        write_task(tmp_path / name, **changes)
        library = TaskLibrary([tmp_path / name])
        return evaluate(subject(folder), settled(library, "made_up"), library, Evaluation(), shared)["made_up"]

    first = cell("first")
    monkeypatch.setattr(hf_model, "HFEngine", SilentEngine)
    lenient = 'return {"strict": 1.0, "parsed": 1.0}'
    again = cell("lenient", grader=lenient)
    assert (first.summary.score, again.summary.score) == (0.0, 1.0)
    assert again.summary.keys.generation == first.summary.keys.generation
    assert again.summary.regraded is not None
    assert again.summary.regraded.before == EarlierGrade(metric="strict", score=0.0, grading=first.summary.keys.grading)
    kept = ["item_id", "sample", "prompt", "target", "response", "finish", "tokens"]
    pd.testing.assert_frame_equal(again.samples[kept], first.samples[kept])
    assert list(again.samples.columns) == list(first.samples.columns)
    assert find_differences(first.summary.keys.fields, again.summary.keys.fields).keys() == {"grading"}
    assert made(cell("first")) == made(first)
    with pytest.raises(AssertionError, match="the engine was called"):
        cell("lenient", teacher_folder, grader=lenient)  # other weights


def test_answers_are_not_graded_against_another_question(student_folder: Path, shared: SharedCells, tmp_path: Path):
    write_task(tmp_path / "task")
    library = TaskLibrary([tmp_path / "task"])
    (task,) = settled(library, "made_up")
    cell = evaluate(subject(student_folder), [task], library, Evaluation(), shared)["made_up"]
    keys, docs = cell.summary.keys, task.test_docs()
    recorded_none = CellResult(cell.summary.model_copy(update={"questions": None}), cell.samples)
    parts = [{**doc, "prompt": doc["prompt"][:1]} for doc in docs]
    for stored, asked in ((cell, docs[::-1]), (recorded_none, docs[::-1]), (cell, parts)):
        with pytest.raises(TaskError, match=r"belong to other questions than the test split asks now"):
            regrade(task, asked, stored, keys)
    for stored in (cell, recorded_none):
        assert regrade(task, docs, stored, keys).summary.questions == cell.summary.questions
    with pytest.raises(TaskError, match="6 items have stored answers and its test split has 5 now"):
        regrade(task, docs[:5], cell, keys)


def test_the_same_weights_in_another_folder_are_not_generated_again(
    student_folder: Path, library: TaskLibrary, shared: SharedCells, generations: list[int], tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(student_folder, copy)
    first = evaluate(subject(student_folder), settled(library, "tiny_weather"), library, Evaluation(limit=4), shared)
    second = evaluate(subject(copy), settled(library, "tiny_weather"), library, Evaluation(limit=4), shared)
    assert generations == [4]
    pd.testing.assert_frame_equal(first["tiny_weather"].samples, second["tiny_weather"].samples)
    assert made(first["tiny_weather"]) == made(second["tiny_weather"])


def test_one_changed_weight_changes_the_digest_and_its_file_layout_does_not(student_folder: Path, tmp_path: Path):
    loaded = load(student_folder, _spec(), "cpu")
    loaded.model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path / "sharded") == weights_digest(student_folder)
    with torch.no_grad():
        next(iter(loaded.model.parameters())).view(-1)[0] += 1e-3
    loaded.model.save_pretrained(tmp_path / "changed")
    assert weights_digest(tmp_path / "changed") != weights_digest(student_folder)


def test_the_same_tensors_under_another_configuration_are_another_model(
    student_folder: Path, library: TaskLibrary, shared: SharedCells, generations: list[int], tmp_path: Path
):
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rms_norm_eps": 5.0}
    other = with_config(student_folder, tmp_path / "other", **rotary)
    moved = with_config(student_folder, tmp_path / "moved", transformers_version="4.0.0", dtype="bfloat16")
    assert weights_digest(other) == weights_digest(student_folder)
    tasks = settled(library, "tiny_weather")
    here, there, again = (
        evaluate(subject(folder), tasks, library, Evaluation(limit=2), shared)["tiny_weather"].summary.keys
        for folder in (student_folder, other, moved)
    )
    assert generations == [2, 2]
    assert here.generation == again.generation != there.generation
    assert here.comparability == there.comparability


def test_other_settings_of_a_generation_are_other_cells(
    student_folder: Path, library: TaskLibrary, shared: SharedCells, generations: list[int]
):
    def key(settings: Evaluation, chat: Chat = CHATML, **decoding: Any) -> Keys:
        tasks = settled(library, "tiny_weather", **decoding)
        cells = evaluate(subject(student_folder, chat), tasks, library, settings, shared)
        return cells["tiny_weather"].summary.keys

    plain = key(Evaluation(limit=2))
    reseeded = key(Evaluation(limit=2, seed=7))
    others = [
        key(Evaluation(limit=3)),
        key(Evaluation(limit=2), max_gen_toks=9),
        key(Evaluation(limit=2), until=["}"]),
        key(Evaluation(limit=2), Chat(template="chatml", stop=("<|im_end|>", "<|endoftext|>"))),
    ]
    generation = {keys.generation for keys in (plain, reseeded, *others)}
    assert len(generation) == len(generations) == 6
    assert reseeded.comparability == plain.comparability
    assert plain.comparability not in {keys.comparability for keys in others}
    assert find_differences(plain.fields, others[1].fields) == {"settings.max_gen_toks": (24, 9)}
    assert list(find_differences(plain.fields, others[3].fields)) == ["backend.tokenizer"]


@pytest.mark.pitfall(
    "a different version of torch, transformers, lm-eval or tokenizers gives different scores",
    area="vLLM",
    guard="`harness/evaluation/keys.py` puts their versions into the generation key and the comparability key",
    evidence="the keys leave the versions out",
)
@pytest.mark.parametrize("package", ["torch", "transformers", "lm_eval", "tokenizers"])
def test_another_version_of_a_library_is_another_cell(
    package: str, library: TaskLibrary, monkeypatch: pytest.MonkeyPatch
):
    (task,) = settled(library, "tiny_weather")
    here, docs = keys.version, task.test_docs(1)
    found = [make_keys(task, docs, ["say 1"], "w", "c", 0, {})]
    monkeypatch.setattr(keys, "version", lambda name: "99" if name == package else here(name))
    found.append(make_keys(task, docs, ["say 1"], "w", "c", 0, {}))
    assert found[0].generation != found[1].generation
    assert found[0].comparability != found[1].comparability
    assert found[0].grading == found[1].grading


DOC = {"prompt": "say 1", "target": "1"}


def grading_key(folder: Path, **changes: Any) -> str:
    docs = {"train": [DOC], "test": [{**DOC, "target": changes.pop("target", "1")}]}
    write_task(folder, docs=docs, **changes)
    task = TaskLibrary([folder]).load("made_up")
    return make_keys(task, task.test_docs(), ["say 1"], "w", "c", 0, {}).grading


def test_another_grader_or_reference_is_another_grade_of_the_same_answer(tmp_path: Path):
    lenient = 'return {"strict": float(doc["target"] in results[0]), "parsed": 1.0}'
    found = [
        grading_key(tmp_path / "plain"),
        grading_key(tmp_path / "lenient", grader=lenient),
        grading_key(tmp_path / "metric", metadata={"version": 1.0, "harness": {"metric": "parsed"}}),
        grading_key(tmp_path / "filter", filter_list=[{"name": "f", "filter": [{"function": "uppercase"}]}]),
        grading_key(tmp_path / "reference", target="one"),
    ]
    assert len(set(found)) == 5
    assert grading_key(tmp_path / "again") == found[0]


OWN_METRIC = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
CHOICES = {"output_type": "multiple_choice", "generation_kwargs": None, "doc_to_choice": "{{[target, prompt]}}"}


def test_another_target_or_list_of_choices_is_another_grade_where_lm_eval_grades(tmp_path: Path):
    plain = {"grader": None, "metric_list": OWN_METRIC, "metadata": {"version": 1.0}}
    choice = {**plain, **CHOICES, "metric_list": [{**OWN_METRIC[0], "metric": "acc"}], "doc_to_target": 0}
    found = [
        grading_key(tmp_path / "plain", **plain),
        grading_key(tmp_path / "target", **plain, doc_to_target="prompt"),
        grading_key(tmp_path / "choice", **choice),
        grading_key(tmp_path / "index", **{**choice, "doc_to_target": 1}),
        grading_key(tmp_path / "choices", **{**choice, "doc_to_choice": "{{[prompt, target]}}"}),
    ]
    assert len(set(found)) == 5
    assert grading_key(tmp_path / "again", **plain) == found[0]


FUNCTIONS = """
def agg(found):
    return sum(found) / len(found)
def kept(resps, docs):
    return resps
"""
KEY_SCRIPT = """
import sys
from harness.evaluation.keys import grading_key
from harness.lmeval.library import TaskLibrary
for folder in sys.argv[1:]:
    task = TaskLibrary([folder]).load("made_up")
    print(grading_key(task, task.test_docs()))
"""


def with_functions(folder: Path) -> Path:
    """Write a task in the shape of ifeval, with functions for aggregation and filter; return its folder."""
    filters = [{"name": "f", "filter": [{"function": "custom", "filter_fn": "KEPT"}, {"function": "take_first"}]}]
    listed = [{"metric": name, "aggregation": "AGG", "higher_is_better": True} for name in ("strict", "parsed")]
    path = write_task(folder, filter_list=filters, metric_list=listed)
    text = path.read_text().replace("AGG", "!function made_up_code.agg").replace("KEPT", "!function made_up_code.kept")
    path.write_text(text)
    code = folder / "made_up_code.py"
    code.write_text(code.read_text() + FUNCTIONS)
    return folder


def test_functions_in_a_task_file_give_one_grading_key_in_all_processes_and_folders(tmp_path: Path):
    folders = [with_functions(tmp_path / name) for name in ("one", "other")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KEY_SCRIPT, *map(str, folders)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    task = TaskLibrary([folders[0]]).load("made_up")
    here = keys.grading_key(task, task.test_docs())
    assert found.splitlines() == [here] * 2
    (folders[1] / "made_up_code.py").write_text((folders[1] / "made_up_code.py").read_text().replace("sum", "max"))
    changed = TaskLibrary([folders[1]]).load("made_up")
    assert keys.grading_key(changed, changed.test_docs()) != here


def test_a_corrected_reference_is_graded_again_although_the_prompt_is_the_same(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    scores: list[float] = []
    answer = 'return {"strict": float(doc["target"] == "yes"), "parsed": 1.0}'
    for target in ("no", "yes"):
        folder = tmp_path / target
        write_task(folder, docs={"train": [DOC], "test": [{"prompt": "say", "target": target}]}, grader=answer)
        library = TaskLibrary([folder])
        cells = evaluate(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)
        scores.append(cells["made_up"].summary.score)
    assert scores == [0.0, 1.0]


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
    evaluate(subject(student_folder), tasks, library, Evaluation(limit=2), shared)
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
        cells = evaluate(subject(student_folder), tasks, library, Evaluation(limit=4, seed=seed), shared)
        return cells["tiny_weather"].samples["response"].tolist()

    torch.manual_seed(1)
    first = answers(1, "a")
    torch.manual_seed(2)
    assert answers(1, "b") == first
    assert answers(2, "c") != first


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
    return evaluate(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)["made_up"]


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


def made(cell: CellResult) -> CellSummary:
    """Return a cell's summary as it is before it is written, without the digest of its file of answers."""
    return cell.summary.model_copy(update={"samples_digest": ""})


def test_a_cell_read_back_is_the_cell_that_was_made(scripted: CellResult, shared: SharedCells):
    found = shared.get(scripted.summary.keys)
    assert found is not None
    assert made(found) == made(scripted)
    pd.testing.assert_frame_equal(found.samples, scripted.samples)


def test_identical_documents_keep_ids_of_their_own(student_folder: Path, shared: SharedCells, tmp_path: Path):
    write_task(tmp_path / "task", docs={"train": [DOC], "test": [DOC, DOC, {"prompt": "say 2", "target": "2"}, DOC]})
    library = TaskLibrary([tmp_path / "task"])
    cells = evaluate(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)
    base, other = item_id(DOC), item_id({"prompt": "say 2", "target": "2"})
    assert cells["made_up"].samples["item_id"].tolist() == [base, f"{base}#2", other, f"{base}#3"]


def test_item_ids_are_the_same_for_every_checkpoint(
    student_folder: Path, teacher_folder: Path, library: TaskLibrary, shared: SharedCells
):
    ids = [
        evaluate(subject(folder), settled(library, "tiny_weather"), library, Evaluation(limit=5), shared)[
            "tiny_weather"
        ]
        .samples["item_id"]
        .tolist()
        for folder in (student_folder, teacher_folder)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 5


def test_a_multiple_choice_probe_is_scored_by_the_models_likelihoods(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    rows = [{"prompt": f"pick {i}", "answers": ["Oslo", "monday", "{"], "label": i % 3} for i in range(6)]
    write_task(
        tmp_path, docs={"train": rows, "test": rows}, output_type="multiple_choice", doc_to_target="label",
        doc_to_choice="answers", generation_kwargs=None, grader=None, metadata={"version": 1.0},
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    library = TaskLibrary([tmp_path])
    task = library.load("made_up")
    cell = evaluate(subject(student_folder), [task], library, Evaluation(), shared)["made_up"]
    loaded, expected = load(student_folder, _spec(), "cpu"), list[float]()
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
    with pytest.raises(TaskError, match=r"its answer may take 120, more than the model's context of 128"):
        evaluate(subject(student_folder), tasks, library, Evaluation(limit=2), shared)


def test_a_scored_text_that_would_be_cut_is_refused_by_the_evaluator_and_before_it(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    choice = {"grader": None, **CHOICES, "doc_to_target": 0, "metric_list": [{**OWN_METRIC[0], "metric": "acc"}]}
    rows = [{"prompt": "x y z " * 100, "target": "a"}, {"prompt": "say", "target": "b"}]
    write_task(tmp_path, docs={"train": rows, "test": rows}, metadata={"version": 1.0}, **choice)
    library = TaskLibrary([tmp_path])
    task, renderer = library.load("made_up"), load(student_folder, _spec(), "cpu").renderer
    with pytest.raises(TaskError, match=r"task made_up: its longest prompt with a continuation .* context of 128"):
        evaluate(subject(student_folder), [task], library, Evaluation(), shared)
    with pytest.raises(TaskError, match=r"task made_up: its longest test prompt with a continuation .* context of 128"):
        check_test_prompts([task], renderer, 128, None)
    check_test_prompts([task], renderer, 2000, None)


def test_a_scored_text_may_fill_the_context_and_its_last_token(student_folder: Path):
    model: Any = HarnessHFLM(student_folder, CHATML, device="cpu", dtype="float32", batch_size=1, seed=0)
    model._asked_by = {("", ""): "t"}
    (score,) = model._loglikelihood_tokens([(("", ""), [5] * 120, [6] * 9)], disable_tqdm=True)
    assert np.isfinite(score[0])
    with pytest.raises(TaskError, match="has 130 tokens and would be cut to the 129"):
        model._loglikelihood_tokens([(("", ""), [5] * 120, [6] * 10)], disable_tqdm=True)
    assert len(model._loglikelihood_tokens([(None, [5] * 128, [6])], disable_tqdm=True)) == 1


def test_generation_settings_that_would_be_ignored_are_refused(
    student_folder: Path, shared: SharedCells, tmp_path: Path
):
    kwargs = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8, "num_beams": 4}
    write_task(tmp_path, generation_kwargs=kwargs)
    library = TaskLibrary([tmp_path])
    with pytest.raises(TaskError, match=r"generation_kwargs num_beams are not supported"):
        evaluate(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)


def test_requests_with_other_settings_are_answered_with_their_own(student_folder: Path):
    model = HarnessHFLM(student_folder, CHATML, device="cpu", dtype="float32", batch_size=4, seed=0)

    class Request:
        task_name = "t"

        def __init__(self, doc_id: int, budget: int) -> None:
            self.doc_id = doc_id
            self.args = ("say", {"until": ["\n"], "temperature": 0.0, "max_gen_toks": budget})

    model.generate_until([Request(0, 1), Request(1, 2), Request(2, 1)])
    assert [model.answers["t", i][0].tokens for i in range(3)] == [1, 2, 1]


def test_a_tokenizer_that_merges_otherwise_is_another_one_and_a_saved_one_the_same(
    student_folder: Path, tmp_path: Path
):
    here = load(student_folder, _spec(), "cpu")
    save(here, tmp_path / "saved")
    shutil.copytree(student_folder, tmp_path / "merges")
    file = tmp_path / "merges" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"].reverse()
    file.write_text(json.dumps(content))
    saved, merges = (load_renderer(tmp_path / name, _spec()).fingerprint() for name in ("saved", "merges"))
    assert merges != here.renderer.fingerprint() == saved
    before = here.renderer.fingerprint()
    here.renderer.tokenizer(["a", "bb ccc"], padding=True, truncation=True, max_length=2)
    assert here.renderer.fingerprint() == before


def test_a_tokenizer_without_a_padding_token_is_the_same_when_saved(student_folder: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    tokenizer.pad_token = None
    chat = Chat(template="chatml", stop=("<|im_end|>",))
    first = Renderer(tokenizer, chat)
    tokenizer.save_pretrained(tmp_path)
    again = Renderer(AutoTokenizer.from_pretrained(tmp_path), chat)
    assert again.fingerprint() == first.fingerprint()


def test_foreign_checkpoints_give_a_matrix_with_one_row_each(
    micro: Suite, student_folder: Path, teacher_folder: Path, tmp_path: Path
):
    again = tmp_path / "again"
    shutil.copytree(student_folder, again)
    checkpoints = [student_folder, teacher_folder, again]
    (scores,) = evaluate_checkpoints(micro, checkpoints, tmp_path).values()
    assert list(scores.columns) == ["tiny_weather", "tiny_currency", "tiny_reminder"]
    assert list(scores.index) == [str(path) for path in checkpoints]
    folder = tmp_path / "micro" / "checkpoints"
    written = pd.read_csv(folder / "matrix.csv", index_col="checkpoint")
    pd.testing.assert_frame_equal(written, scores, check_names=False, check_dtype=False)
    weights: list[str] = []
    for index, path in enumerate(checkpoints):
        found = read_cell(folder / f"{index}_{path.name}" / "tiny_weather")
        assert found is not None
        assert found[0].score == scores.loc[str(path), "tiny_weather"]
        weights.append(found[0].weights)
    assert weights[0] == weights[2] != weights[1]
    assert matrix_table(scores).row_count == 3


SPOILED = {"tokenizer.json": '{"version": "9.0", "model": {}}', "config.json": '{"model_type": "qwen9"}'}


@pytest.mark.pitfall(
    "a checkpoint written by a different version of transformers may not load, which shows only at its turn",
    area="Small machines",
    guard="`harness/pipeline/checkpoint_matrix.py` reads every checkpoint before it evaluates the first",
    evidence="only the folder is looked for",
)
@pytest.mark.parametrize("name", SPOILED)
def test_every_checkpoint_is_read_before_time_is_spent_on_the_first(
    name: str, micro: Suite, student_folder: Path, tmp_path: Path, generations: list[int]
):
    shutil.copytree(student_folder, tmp_path / "later")
    (tmp_path / "later" / name).write_text(SPOILED[name])
    with pytest.raises(ModelError, match="later: not a causal language model with a tokenizer"):
        evaluate_checkpoints(micro, [student_folder, tmp_path / "later"], tmp_path)
    assert generations == []


def test_a_checkpoint_that_changed_in_its_folder_is_evaluated_again(
    micro: Suite, student_folder: Path, teacher_folder: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    weights: list[str] = []
    for source in (student_folder, teacher_folder):
        shutil.copytree(source, folder, dirs_exist_ok=True)
        evaluate_checkpoints(micro, [folder], tmp_path / "out")
        found = read_cell(tmp_path / "out/micro/checkpoints/0_model/tiny_weather")
        assert found is not None
        weights.append(found[0].weights)
    assert weights == [weights_digest(student_folder), weights_digest(teacher_folder)]
