"""Which stored answers and grades an evaluation may reuse: those of the same weights, settings, versions and graders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from transformers import AutoTokenizer

from harness.config.evaluation import Evaluation
from harness.config.models import Chat
from harness.engines.engine import Completion
from harness.errors import TaskError
from harness.evaluation import evaluator, hf_model, keys
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import evaluate_checkpoint
from harness.evaluation.keys import make_keys
from harness.evaluation.regrading import regrade_cell
from harness.lm.chat import Renderer
from harness.lm.checkpoints import load_checkpoint, load_renderer, save_checkpoint, weights_digest
from harness.lmeval.library import TaskLibrary
from harness.rundir.differences import find_differences
from harness.rundir.records.cell_records import EarlierGrade, Keys
from tests.support.evaluation import (
    CHATML,
    CHOICES,
    DOC,
    OWN_METRIC,
    float32_spec,
    settled,
    stock_answers,
    subject,
    unwritten,
    with_config,
)
from tests.support.models import write_task


class SilentEngine:
    """Stands in for an engine that must not be called."""

    def __init__(self, *_: Any) -> None: ...

    def generate(self, *_: Any) -> list[Completion]:
        raise AssertionError("the engine was called")


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
    first = evaluate_checkpoint(subject(student_folder), settled(library, "tiny_weather"), library, settings, shared)
    second = evaluate_checkpoint(subject(teacher_folder), settled(library, "tiny_weather"), library, settings, shared)
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
        cells = evaluate_checkpoint(subject(folder), tasks, library, settings, shared)
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
        return evaluate_checkpoint(subject(folder), settled(library, "made_up"), library, Evaluation(), shared)[
            "made_up"
        ]

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
    assert unwritten(cell("first")) == unwritten(first)
    with pytest.raises(AssertionError, match="the engine was called"):
        cell("lenient", teacher_folder, grader=lenient)  # other weights


def test_answers_are_not_graded_against_another_question(student_folder: Path, shared: SharedCells, tmp_path: Path):
    write_task(tmp_path / "task")
    library = TaskLibrary([tmp_path / "task"])
    (task,) = settled(library, "made_up")
    cell = evaluate_checkpoint(subject(student_folder), [task], library, Evaluation(), shared)["made_up"]
    keys, docs = cell.summary.keys, task.test_docs()
    recorded_none = CellResult(cell.summary.model_copy(update={"questions": None}), cell.samples)
    parts = [{**doc, "prompt": doc["prompt"][:1]} for doc in docs]
    for stored, asked in ((cell, docs[::-1]), (recorded_none, docs[::-1]), (cell, parts)):
        with pytest.raises(TaskError, match="other questions"):
            regrade_cell(task, asked, stored, keys)
    for stored in (cell, recorded_none):
        assert regrade_cell(task, docs, stored, keys).summary.questions == cell.summary.questions
    with pytest.raises(TaskError, match=r"\b6 items .*test split has 5\b"):
        regrade_cell(task, docs[:5], cell, keys)


def test_the_same_weights_in_another_folder_are_not_generated_again(
    student_folder: Path, library: TaskLibrary, shared: SharedCells, generations: list[int], tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(student_folder, copy)
    first = evaluate_checkpoint(
        subject(student_folder), settled(library, "tiny_weather"), library, Evaluation(limit=4), shared
    )
    second = evaluate_checkpoint(subject(copy), settled(library, "tiny_weather"), library, Evaluation(limit=4), shared)
    assert generations == [4]
    pd.testing.assert_frame_equal(first["tiny_weather"].samples, second["tiny_weather"].samples)
    assert unwritten(first["tiny_weather"]) == unwritten(second["tiny_weather"])


def test_one_changed_weight_changes_the_digest_and_its_file_layout_does_not(student_folder: Path, tmp_path: Path):
    loaded = load_checkpoint(student_folder, float32_spec(), "cpu")
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
        evaluate_checkpoint(subject(folder), tasks, library, Evaluation(limit=2), shared)["tiny_weather"].summary.keys
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
        cells = evaluate_checkpoint(subject(student_folder, chat), tasks, library, settings, shared)
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
    here, docs = keys.installed_version, task.test_docs(1)
    found = [make_keys(task, docs, ["say 1"], "w", "c", 0, {})]
    monkeypatch.setattr(keys, "installed_version", lambda name: "99" if name == package else here(name))
    found.append(make_keys(task, docs, ["say 1"], "w", "c", 0, {}))
    assert found[0].generation != found[1].generation
    assert found[0].comparability != found[1].comparability
    assert found[0].grading == found[1].grading


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


@pytest.mark.slow
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
        cells = evaluate_checkpoint(subject(student_folder), settled(library, "made_up"), library, Evaluation(), shared)
        scores.append(cells["made_up"].summary.score)
    assert scores == [0.0, 1.0]


def test_a_tokenizer_that_merges_otherwise_is_another_one_and_a_saved_one_the_same(
    student_folder: Path, tmp_path: Path
):
    here = load_checkpoint(student_folder, float32_spec(), "cpu")
    save_checkpoint(here, tmp_path / "saved")
    shutil.copytree(student_folder, tmp_path / "merges")
    file = tmp_path / "merges" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"].reverse()
    file.write_text(json.dumps(content))
    saved, merges = (load_renderer(tmp_path / name, float32_spec()).fingerprint() for name in ("saved", "merges"))
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
