"""Probes of every kind that lm-eval has: choices, likelihoods, perplexities, groups; lm-eval itself is the oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from harness.config.evaluation import Evaluation
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import TaskError
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import evaluate_checkpoint
from harness.evaluation.groups import group_cell, load_evaluation_plan
from harness.evaluation.regrading import regrade_runs
from harness.lm.checkpoints import load_renderer
from harness.lmeval.generation_settings import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.pipeline.checkpoint_matrix import evaluate_checkpoints
from harness.pipeline.run import run
from harness.rundir.store import is_finished
from reports.data.frames import load_frames
from tests.support.evaluation import subject
from tests.support.models import micro_suite, write_yaml

WORDS = ["red", "green", "blue", "yellow", "pink"]
CHOICES = [
    {"question": f"Is {a} before {b}?", "choices": [f"yes, {a}", "no"], "label": (i + k) % 2}
    for i, a in enumerate(WORDS) for k, b in enumerate(WORDS) if a != b
]  # fmt: skip
TEXTS = [{"text": " ".join(WORDS[i:] + WORDS[:i]), "rest": f" {WORDS[i - 1]}"} for i in range(5)]
MEAN: dict[str, Any] = {"aggregation": "mean", "higher_is_better": True}
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "label",
    "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
}  # fmt: skip
CONTINUATION: dict[str, Any] = {
    "output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{rest}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, {"metric": "acc", **MEAN},
    ],
}  # fmt: skip
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}  # fmt: skip
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", **MEAN}],
}  # fmt: skip


def write(folder: Path, name: str, docs: list[dict[str, Any]], **config: Any) -> None:
    """Write a task with its records, as lm-eval's own files do."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, docs)))
    head = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    write_yaml(folder / f"{name}.yaml", {**head, "test_split": "test", "metadata": {"version": 1}, **config})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of each kind and groups over them."""
    folder = tmp_path_factory.mktemp("tasks")
    write(folder, "orders", CHOICES, **CHOICE)
    write(folder, "few_orders", CHOICES[:5], **{**CHOICE, "tag": "orderly"})
    write(folder, "endings", TEXTS, **CONTINUATION)
    write(folder, "texts", TEXTS, **ROLLING)
    write(folder, "written", CHOICES[:4], **WRITTEN)
    group: dict[str, Any] = {"group": "all_orders", "task": ["orders", {"group": "few", "task": ["few_orders"]}]}
    write_yaml(folder / "all_orders.yaml", {**group, "aggregate_metric_list": [{"metric": "acc"}]})
    macro = {"aggregate_metric_list": [{"metric": "acc_norm", "weight_by_size": False}]}
    write_yaml(folder / "even_orders.yaml", {**group, "group": "even_orders", **macro})
    write_yaml(folder / "mixed.yaml", {"group": "mixed", "task": ["endings", "written"]})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, student_folder: Path) -> Path:
    return student_folder


@pytest.fixture(scope="module")
def found(folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellResult]:
    """Every task's cell on the micro student."""
    library = TaskLibrary([folder])
    tasks = [library.load(name) for name in ("orders", "few_orders", "endings", "texts", "written")]
    settings = Evaluation(batch_size=8)
    for task in tasks:
        settle_generation(task, settings.decoding)
    return evaluate_checkpoint(
        subject(checkpoint), tasks, library, settings, SharedCells(tmp_path_factory.mktemp("shared"))
    )


@pytest.fixture(scope="module")
def stock(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """lm-eval's own results and samples on the same tasks, without the harness."""
    model: Any = HFLM
    loaded = model(pretrained=str(checkpoint), device="cpu", batch_size=8, dtype="float32")
    found: dict[str, Any] = {}
    for tasks in (["all_orders", "endings", "texts"], ["even_orders"]):
        results: Any = simple_evaluate(
            model=loaded,
            tasks=tasks,  # pyright: ignore[reportArgumentType]
            task_manager=TaskLibrary([folder]).manager,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
        )
        found |= {"results": {**found.get("results", {}), **results["results"]}}
        found |= {"groups": {**found.get("groups", {}), **results.get("groups", {})}}
    return found


def test_choices_are_scored_as_lm_eval_scores_them(found: dict[str, CellResult], stock: dict[str, Any]):
    cell, theirs = found["orders"], stock["results"]["orders"]
    assert cell.summary.metric == "acc"
    assert cell.summary.score == pytest.approx(theirs["acc,none"])
    assert 0 < cell.summary.score < 1
    assert cell.summary.metrics["acc_norm"] == pytest.approx(theirs["acc_norm,none"])
    rows = cell.samples
    assert set(rows["outcome"]) == {"correct", "wrong"}
    assert ((rows["response"] == rows["target"]) == (rows["score"] == 1)).all()
    assert rows["finish"].isna().all()


def test_a_continuation_is_scored_by_acc_though_its_perplexity_stands_first(
    found: dict[str, CellResult], stock: dict[str, Any]
):
    cell, theirs = found["endings"], stock["results"]["endings"]
    assert cell.summary.metric == "acc"
    assert cell.summary.score == pytest.approx(theirs["acc,none"])
    assert cell.summary.metrics["perplexity"] == pytest.approx(theirs["perplexity,none"])
    expected = [math.exp(-ll[0]) for ll in cell.samples["loglikelihoods"]]
    assert cell.samples["perplexity"].tolist() == pytest.approx(expected)


def test_a_perplexity_is_scored_by_its_reciprocal_and_shown_as_it_is(
    found: dict[str, CellResult], stock: dict[str, Any]
):
    cell, theirs = found["texts"], stock["results"]["texts"]
    assert cell.summary.metric == "word_perplexity"
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert cell.summary.metrics[metric] == pytest.approx(theirs[f"{metric},none"])
    per_word = [math.exp(ll[0] / 5) for ll in cell.samples["loglikelihoods"]]
    assert cell.samples["score"].tolist() == pytest.approx(per_word)
    assert cell.summary.score == pytest.approx(sum(per_word) / 5)
    assert cell.samples["outcome"].isna().all()
    assert sum(cell.summary.outcomes.values()) == 0


def suite_with(folder: Path, tmp_path: Path, probes: list[str], **evaluation: Any) -> Suite:
    raw = micro_suite()
    raw = {**raw, "probes": probes, "evaluation": {**raw["evaluation"], "limit": 20, **evaluation}}
    return load_suite(str(write_yaml(tmp_path / "micro.yaml", raw)), include=[folder])


@pytest.mark.parametrize(("group", "metric"), [("all_orders", "acc"), ("even_orders", "acc_norm")])
def test_a_group_has_the_mean_that_lm_eval_gives_it(
    group: str, metric: str, folder: Path, tmp_path: Path, found: dict[str, CellResult], stock: dict[str, Any]
):
    evaluated = load_evaluation_plan(TaskLibrary([folder]), suite_with(folder, tmp_path, [group]))
    cell = group_cell(evaluated.groups[group], found)
    assert evaluated.probes == (group,)
    assert cell.summary.score == pytest.approx(stock["groups"][group][f"{metric},none"])
    assert cell.summary.score == pytest.approx(cell.samples.groupby("item_id")["score"].mean().mean())
    assert cell.summary.n == (25 if group == "all_orders" else 2)
    assert set(cell.samples["task"]) == {"orders", "few_orders"}


def test_a_group_without_a_mean_and_a_tag_only_name_tasks(folder: Path, tmp_path: Path):
    library = TaskLibrary([folder])
    evaluated = load_evaluation_plan(library, suite_with(folder, tmp_path, ["mixed", "orderly"]))
    assert evaluated.probes == ("endings", "written", "few_orders")
    assert not evaluated.groups
    assert library.members("all_orders") == ["orders", "few_orders"]


@pytest.mark.slow
def test_groups_texts_and_choices_go_through_a_run_and_into_a_report(folder: Path, tmp_path: Path):
    suite = suite_with(folder, tmp_path, ["all_orders", "texts", "mixed"])
    spec = RunSpec(suite, "none", 0, out=tmp_path / "runs")
    path = run(spec)
    assert is_finished(spec)
    for stage in ("stage_0", "stage_2_tiny_currency"):
        cells = {p.name for p in (path / stage / "eval").iterdir()}
        assert cells == {
            "tiny_weather", "tiny_currency", "all_orders", "orders", "few_orders", "texts", "endings", "written",
        }  # fmt: skip
    frames = load_frames([path])
    shown = frames.scores[frames.scores["role"] == "probe"]
    assert list(dict.fromkeys(shown["task"])) == ["all_orders", "texts", "endings", "written"]
    assert shown["score"].between(0, 1).all()
    assert set(frames.samples("all_orders")["task"].unique()) == {"all_orders"}
    before = json.loads((path / "stage_0/eval/all_orders/results.json").read_text())
    assert before["group"]["tasks"]["orders"]["n"] == 20
    assert {row.cell for row in regrade_runs([path], trust=True)} == {"tiny_weather", "tiny_currency", "written"}
    manifest = json.loads((path / "manifest.json").read_text())
    again = evaluate_checkpoints(suite, [Path(manifest["start_checkpoint"])], tmp_path / "other")
    assert list(again["default"].columns) == [
        "tiny_weather", "tiny_currency", "texts", "endings", "written", "all_orders",
    ]  # fmt: skip
    assert again["default"]["all_orders"].iloc[0] == pytest.approx(before["score"])


def test_a_group_stands_under_a_further_profile_where_all_its_tasks_generate(folder: Path, tmp_path: Path):
    write(folder / "more", "written_too", CHOICES[:2], **WRITTEN)
    mean = {"aggregate_metric_list": [{"metric": "exact_match"}]}
    write_yaml(folder / "more" / "answers.yaml", {"group": "answers", "task": ["written", "written_too"], **mean})
    profiles = {"greedy": {}, "sampled": {"temperature": 1.0, "n": 2}}
    suite = suite_with(folder, tmp_path, ["answers", "all_orders"], profiles=profiles)
    evaluated = load_evaluation_plan(TaskLibrary([folder]), suite)
    assert set(evaluated.groups) == {"answers", "answers@sampled", "all_orders"}
    shown = {"tiny_weather@sampled", "tiny_currency@sampled", "answers@sampled"}
    assert set(evaluated.shown("sampled")) == shown


@pytest.mark.parametrize(
    ("probes", "sentence"),
    [
        (["all_orders", "orders"], "task orders .*twice .*by all_orders and by orders"),
        (["orders", "even_orders"], "task orders .*twice .*by orders and by even_orders"),
    ],
)
def test_a_task_that_two_names_stand_for_is_refused(probes: list[str], sentence: str, folder: Path, tmp_path: Path):
    with pytest.raises(TaskError, match=sentence):
        load_evaluation_plan(TaskLibrary([folder]), suite_with(folder, tmp_path, probes))


def test_a_group_cannot_be_a_stage(folder: Path):
    with pytest.raises(TaskError, match="all_orders is a group of 2 tasks"):
        TaskLibrary([folder]).load("all_orders")


def test_a_metric_where_lower_is_better_is_not_a_score(tmp_path: Path):
    errors = {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}
    write(tmp_path, "unsure", CHOICES, **{**CHOICE, "metric_list": [errors, {"metric": "acc", **MEAN}]})
    library = TaskLibrary([tmp_path])
    assert library.load("unsure").metric == "acc"
    write(tmp_path, "unsure", CHOICES, **{**CHOICE, "metric_list": [errors]})
    with pytest.raises(TaskError, match=r"'brier_score'.*none of its metrics"):
        settle_generation(TaskLibrary([tmp_path]).load("unsure"), Evaluation().decoding)


def test_a_score_outside_0_to_1_is_refused(tmp_path: Path, checkpoint: Path):
    write(tmp_path, "written", CHOICES[:2], **{**WRITTEN, "process_results": None})
    (tmp_path / "written.yaml").write_text(
        (tmp_path / "written.yaml").read_text().replace("process_results: null", "process_results: !function g.grade")
    )
    (tmp_path / "g.py").write_text("def grade(doc, results):\n    return {'exact_match': 23.5}\n")
    library = TaskLibrary([tmp_path])
    with pytest.raises(TaskError, match=r"23\.5 for 'exact_match' .*0 to 1"):
        evaluate_checkpoint(
            subject(checkpoint), [library.load("written")], library, Evaluation(), SharedCells(tmp_path)
        )


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"doc_to_text": "Say: {{question}}"}, False), ({"doc_to_choice": "{{['y', 'n']}}"}, False)],
)
def test_likelihood_cells_are_taken_again_only_for_the_same_requests(
    change: dict[str, Any], same: bool, tmp_path: Path, checkpoint: Path, micro: Suite
):
    renderer = load_renderer(checkpoint, micro.student)

    def asked(**changes: Any) -> list[str]:
        write(tmp_path, "orders", CHOICES, **{**CHOICE, **changes})
        task = TaskLibrary([tmp_path]).load("orders")
        return task.asked(task.test_docs(), renderer)

    assert (asked() == asked(**change)) is same


def test_few_shot_prompts_do_not_depend_on_what_was_rendered_before(tmp_path: Path, checkpoint: Path, micro: Suite):
    write(tmp_path, "orders", CHOICES, **{**CHOICE, "num_fewshot": 2, "fewshot_split": "test"})
    task, renderer = TaskLibrary([tmp_path]).load("orders"), load_renderer(checkpoint, micro.student)
    docs = task.test_docs(6)
    first = task.asked(docs, renderer)
    task.asked(docs[1:], renderer)
    assert task.asked(docs, renderer) == first
    assert len(set(first)) == len(first)


@pytest.mark.slow
def test_the_names_of_lm_eval_resolve_and_missing_data_is_one_sentence(tmp_path: Path):
    write_yaml(tmp_path / "mine.yaml", {"group": "mine", "task": ["hellaswag", "ifeval"]})
    library = TaskLibrary([tmp_path])
    assert library.members("hellaswag") == ["hellaswag"]
    assert library.members("mine") == ["hellaswag", "ifeval"]
    subjects = library.members("mmlu")
    assert len(subjects) == 57
    assert all(name.startswith("mmlu_") for name in subjects)
    missing = "could not be read here .*HF_HOME"
    for name, sentence in (
        ("hellaswag", f"task hellaswag: its data set Rowan/hellaswag {missing}"),
        ("ifeval", f"task ifeval: (its data set google/IFEval {missing}|it needs the Python package 'langdetect')"),
        ("mmlu_stem", f"task mmlu_stem: its data set cais/mmlu {missing}"),
    ):
        with pytest.raises(TaskError, match=sentence) as caught:
            library.load_group(name) if library.is_group(name) else library.load(name)
        assert "\n" not in str(caught.value)


@pytest.mark.pitfall(
    "indexing lm-eval's own tasks takes seconds each time",
    area="lm-eval",
    guard="`harness/lmeval/library.py` indexes them only when a suite names one of them",
    evidence="the first index contains them",
)
def test_lm_evals_own_tasks_are_indexed_only_when_one_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    from harness.lmeval import library as tasks

    original: Callable[..., Any] = tasks.TaskManager

    def counted(*args: Any, **settings: Any) -> Any:
        asked.append(settings.get("include_defaults", True))
        return original(*args, **{**settings, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", counted)
    library = TaskLibrary([folder])
    library.load("orders")
    library.load_group("all_orders")
    assert asked == [False]
    with pytest.raises(TaskError, match="there is no task 'hellaswag'"):
        library.load("hellaswag")
    assert asked == [False, True]


def test_answers_of_a_group_hold_what_its_tasks_rows_hold(folder: Path, tmp_path: Path, found: dict[str, CellResult]):
    evaluated = load_evaluation_plan(TaskLibrary([folder]), suite_with(folder, tmp_path, ["all_orders"]))
    rows = group_cell(evaluated.groups["all_orders"], found).samples
    few = rows[rows["task"] == "few_orders"].reset_index(drop=True)
    theirs = found["few_orders"].samples
    pd.testing.assert_series_equal(few["score"], theirs["acc"], check_names=False)
    assert list(few["item_id"]) == [f"few_orders/{item}" for item in theirs["item_id"]]
    assert list(few["outcome"]) == list(theirs["outcome"])
