"""A run: the files it writes, its provenance, the order of its training, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapters.none import NoUpdate
from harness.adapter import StageContext, StageResult
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.config.teacher_identity import full_identity, weights_part
from harness.errors import RunError, TaskError
from harness.lm.checkpoints import config_digest, weights_digest
from harness.pipeline.run import run
from harness.rundir.process.progress import Event
from harness.rundir.store import is_finished
from tests.support.models import micro_suite, write_yaml
from tests.support.runs import FOLDERS, TASKS, StoppedError, cells, changed_suite, manifest, steps, stop_at


def test_a_run_leaves_the_files_that_its_contract_names(aopd: Path, out: Path):
    assert aopd == out / "micro" / "aopd" / "default" / "seed0"
    for index, stage in enumerate(FOLDERS):
        for task in TASKS:
            results = json.loads((aopd / stage / "eval" / task / "results.json").read_text())
            assert (results["task"], results["stage"], results["n"]) == (task, index, 4)
            assert len(pd.read_parquet(aopd / stage / "eval" / task / "samples.parquet")) == 4
    assert not (aopd / "stage_0" / "train").exists()
    for stage in FOLDERS[1:]:
        # Other tests of this session may have branched from the run, which leaves a note.
        files = {path.name for path in (aopd / stage / "train").iterdir()} - {"needed_by"}
        assert files == {"steps.jsonl", "rollouts.parquet", "checkpoint", "done.json"}
        assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
            path.name for path in (aopd / stage / "train" / "checkpoint").iterdir()
        }
    assert {path.name for path in aopd.iterdir() if not path.name.startswith(".")} == {
        "manifest.json",
        "log.txt",
        "teacher",
        *FOLDERS,
    }


def test_the_manifest_says_what_the_run_was_made_of(aopd: Path, student_folder: Path, teacher_folder: Path):
    found = manifest(aopd)
    assert (found["suite"], found["adapter"], found["order"], found["seed"]) == ("micro", "aopd", "default", 0)
    assert [stage["name"] for stage in found["stages"]] == ["tiny_weather", "tiny_currency"]
    assert found["probes"] == ["tiny_reminder"]
    assert found["adapter_config"]["top_k"] == 32
    assert found["config"]["training"]["steps"] == 2
    assert found["start"] == "weak"
    assert found["finished"] >= found["created"]
    assert {"torch", "transformers", "lm_eval", "python"} <= set(found["packages"])
    assert found["weights"] == {
        "start": weights_digest(student_folder),
        "teacher": full_identity(weights_digest(teacher_folder), config_digest(teacher_folder)),
        "stage_1": weights_digest(aopd / FOLDERS[1] / "train/checkpoint"),
        "stage_2": weights_digest(aopd / FOLDERS[2] / "train/checkpoint"),
    }
    assert len(set(found["weights"].values())) == 4


def test_every_stage_is_evaluated_with_the_weights_it_left(aopd: Path):
    weights = manifest(aopd)["weights"]
    for name, stage in zip(("start", "stage_1", "stage_2"), FOLDERS, strict=True):
        assert {cells(aopd)[f"{stage}/eval/{task}"]["weights"] for task in TASKS} == {weights[name]}


def test_both_steps_of_both_stages_are_logged(aopd: Path):
    assert [line["step"] for line in steps(aopd)] == [0, 1, 0, 1]
    assert all(0 <= line["routed_fkl"] <= 1 for line in steps(aopd))


def test_a_finished_run_is_left_alone(aopd: Path, micro: Suite, out: Path):
    def times() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in aopd.rglob("*") if p.is_file() and p.name != ".lock"}

    before, events = times(), list[Event]()
    assert run(RunSpec(micro, "aopd", 0, out=out), events.append) == aopd
    assert times() == before
    assert events == []
    assert is_finished(RunSpec(micro, "aopd", 0, out=out))


def test_the_common_start_is_evaluated_once_for_all_adapters(opd: Path, aopd: Path, out: Path):
    # 3 tasks: once at the start, and after each of two stages of two runs
    assert len(list((out / "evaluations").glob("*/results.json"))) >= 3 * (1 + 2 * 2)
    for task in TASKS:
        one, other = ((run / "stage_0" / "eval" / task / "results.json").read_text() for run in (opd, aopd))
        assert one == other  # word for word, its seconds too: the same generation


def test_the_teacher_is_scored_once_for_all_runs_that_learn_from_it(opd: Path, aopd: Path, control: Path):
    for task in TASKS:
        one, other = ((run / "teacher" / "eval" / task / "results.json").read_text() for run in (opd, aopd))
        assert one == other  # word for word, its seconds too: the same generation
        assert json.loads(one)["weights"] == weights_part(manifest(opd)["weights"]["teacher"])
    assert not (control / "teacher").exists()


def test_methods_and_stages_change_the_weights(opd: Path, aopd: Path):
    assert manifest(opd)["weights"]["start"] == manifest(aopd)["weights"]["start"]
    assert manifest(opd)["weights"]["stage_1"] != manifest(aopd)["weights"]["stage_1"]
    # the same seed gives the same first rollouts to every method
    assert steps(opd)[0]["entropy"] == steps(aopd)[0]["entropy"]
    assert steps(opd)[0]["loss"] != steps(aopd)[0]["loss"]


def test_the_control_keeps_weights_and_scores(control: Path):
    weights = manifest(control)["weights"]
    assert set(weights) == {"start", "stage_1", "stage_2"}
    assert len(set(weights.values())) == 1
    found = cells(control)
    for task in TASKS:
        scores = [found[f"{stage}/eval/{task}"]["metrics"] for stage in FOLDERS]
        assert scores[0] == scores[1] == scores[2]


@pytest.mark.pitfall(
    "after an evaluation, two training seeds draw the same rollouts",
    area="lm-eval",
    guard="`harness/engines/hf.py` draws from its own generator, seeded by run, stage and step",
    evidence="rollouts are drawn from torch's global generator, which evaluations and stages reseed",
)
@pytest.mark.slow
def test_two_seeds_draw_other_rollouts_from_one_start_although_an_evaluation_comes_before(tmp_path: Path):
    def one_prompt_one_start(raw: dict[str, Any]) -> None:
        raw["student"]["seed"] = 0
        raw["training"]["train_items"] = 1
        raw["stages"] = ["tiny_weather"]

    suite = changed_suite(tmp_path, one_prompt_one_start)
    logs: list[list[dict[str, Any]]] = []
    for seed in (0, 1):
        folder = run(RunSpec(suite, "opd", seed, out=tmp_path / "runs"))
        text = (folder / FOLDERS[1] / "train" / "steps.jsonl").read_text()
        logs.append([json.loads(line) for line in text.splitlines()])
    starts = [manifest(tmp_path / f"runs/micro/opd/default/seed{seed}")["weights"]["start"] for seed in (0, 1)]
    assert starts[0] == starts[1]
    # one and the same prompt each time, so that only the draws can differ
    assert all(one["entropy"] != other["entropy"] for one, other in zip(*logs, strict=True))
    assert logs[0][0]["entropy"] != logs[0][1]["entropy"]


def test_what_is_replayed_is_what_earlier_stages_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, list[str]]] = []

    def looking(self: NoUpdate, ctx: StageContext) -> StageResult:
        seen.append((len(ctx.examples), [example.task for example in ctx.past]))
        return StageResult(0)

    monkeypatch.setattr(NoUpdate, "train_stage", looking)
    limits = {"tiny_weather": 3, "tiny_currency": 5}
    stages = [{"task": task, "training": {"train_items": limit}} for task, limit in limits.items()]
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", {**micro_suite(), "stages": stages})))
    run(RunSpec(suite, "none", 0, out=tmp_path))
    assert seen == [(3, []), (5, ["tiny_weather"] * 3)]


@pytest.mark.slow
def test_seeds_differ_in_their_start_where_the_student_has_no_seed_of_its_own(micro: Suite, aopd: Path, tmp_path: Path):
    spec = RunSpec(micro, "aopd", 1, out=tmp_path)
    with pytest.raises(StoppedError):
        run(spec, stop_at("stage 1 tiny_weather 0"))
    results = json.loads((spec.path / "stage_0/eval/tiny_weather/results.json").read_text())
    assert results["weights"] != manifest(aopd)["weights"]["start"]


def test_another_configuration_in_the_same_directory_is_refused_with_the_keys_that_differ(
    aopd: Path, out: Path, tmp_path: Path
):
    suite = changed_suite(tmp_path, lambda raw: raw["evaluation"].update(limit=3))
    before = (aopd / "manifest.json").read_bytes()
    with pytest.raises(RunError) as error:
        run(RunSpec(suite, "aopd", 0, out=out))
    assert re.search(r"differs in evaluation\.limit\); .*--out", str(error.value))
    assert not is_finished(RunSpec(suite, "aopd", 0, out=out))
    assert (aopd / "manifest.json").read_bytes() == before


def test_what_concerns_siblings_only_does_not_make_a_run_another(micro: Suite, out: Path, tmp_path: Path):
    def more(raw: dict[str, Any]) -> None:
        raw["adapters"]["aopd-official"] = {"adapter": "aopd", "options": {"gate": "prob_diff"}}
        raw["seeds"] = [0, 1, 2]
        raw["orders"] = {"reverse": ["tiny_currency", "tiny_weather"]}
        raw["description"] = "words"

    changed = changed_suite(tmp_path, more)
    assert RunSpec(changed, "aopd", 0).config() == RunSpec(micro, "aopd", 0).config()
    assert RunSpec(changed, "aopd-official", 0).config() != RunSpec(micro, "aopd", 0).config()
    assert RunSpec(micro, "aopd", 1).config() != RunSpec(micro, "aopd", 0).config()


def test_a_named_order_trains_the_stages_in_that_order(tmp_path: Path):
    suite = changed_suite(tmp_path, lambda raw: raw.update(orders={"reverse": ["tiny_currency", "tiny_weather"]}))
    folder = run(RunSpec(suite, "none", 0, "reverse", tmp_path / "runs"))
    assert folder == tmp_path / "runs/micro/none/reverse/seed0"
    assert (folder / "stage_1_tiny_currency/train/done.json").is_file()
    assert (folder / "stage_2_tiny_weather/train/done.json").is_file()
    assert [stage["name"] for stage in manifest(folder)["stages"]] == ["tiny_currency", "tiny_weather"]


@pytest.mark.slow
def test_the_joint_order_trains_all_tasks_in_one_stage(micro: Suite, tmp_path: Path):
    folder = run(RunSpec(micro, "aopd", 0, "joint", tmp_path / "runs"))
    assert manifest(folder)["stages"] == [{"name": "joint", "trains": ["tiny_weather", "tiny_currency"], "steps": 4}]
    done = json.loads((folder / "stage_1_joint/train/done.json").read_text())
    assert done["steps"] == 4
    assert sorted(path.name for path in (folder / "stage_1_joint/eval").iterdir()) == sorted(micro.tasks)
    assert not (folder / "stage_2_joint").exists()


@pytest.mark.slow
def test_a_stage_may_train_several_tasks_together_and_another_follow(tmp_path: Path):
    def mixed(raw: dict[str, Any]) -> None:
        raw["stages"] = [{"task": "tools", "together": ["tiny_weather", "tiny_currency"]}, "tiny_short_sums"]

    suite = changed_suite(tmp_path, mixed)
    folder = run(RunSpec(suite, "none", 0, out=tmp_path / "runs"))
    assert suite.tasks == ("tiny_weather", "tiny_currency", "tiny_short_sums", *suite.probes)
    assert [stage["trains"] for stage in manifest(folder)["stages"]] == [
        ["tiny_weather", "tiny_currency"],
        ["tiny_short_sums"],
    ]
    assert sorted(path.name for path in (folder / "stage_1_tools/eval").iterdir()) == sorted(suite.tasks)


def test_a_run_notes_where_its_time_went(aopd: Path):
    (session,) = manifest(aopd)["sessions"]
    seconds = session["seconds"]
    assert set(seconds) == {"models", "train", "evaluate", "total"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["models"] + seconds["train"] + seconds["evaluate"] <= seconds["total"]


def test_a_run_notes_its_peak_memory(aopd: Path):
    (session,) = manifest(aopd)["sessions"]
    peaks = session["peak_memory"]
    assert set(peaks) == {"of", "models", "train", "evaluate"}
    assert peaks["of"] == "process"  # micro runs are on the CPU
    assert min(peaks["models"], peaks["train"], peaks["evaluate"]) > 100 * 2**20  # torch alone takes more


@pytest.mark.pitfall(
    "where a prompt and its answer budget exceed the context, lm-eval cuts the start of the prompt, but its log "
    "shows the whole prompt",
    area="lm-eval",
    guard=(
        "`harness/pipeline/resources.py` renders every prompt before a run and refuses, with the numbers, what does "
        "not fit"
    ),
    evidence="the check of a run's prompts is removed",
)
def test_a_budget_that_does_not_fit_the_context_is_refused_before_anything_is_trained(tmp_path: Path):
    suite = changed_suite(tmp_path, lambda raw: raw["training"].update(max_new_tokens=120))
    with pytest.raises(TaskError, match=r"longest training prompt .*context of 128\b"):
        run(RunSpec(suite, "aopd", 0, out=tmp_path / "runs"))
    assert not list((tmp_path / "runs").rglob("stage_*"))


@pytest.mark.slow
def test_a_stage_may_have_a_teacher_of_its_own(aopd: Path, tmp_path: Path):
    def other_teacher(raw: dict[str, Any]) -> None:
        raw["stages"] = [{"task": "tiny_weather"}, {"task": "tiny_currency", "teacher": {**raw["teacher"], "seed": 7}}]

    folder = run(RunSpec(changed_suite(tmp_path, other_teacher), "aopd", 0, out=tmp_path / "runs"))
    ours, theirs = manifest(folder)["weights"], manifest(aopd)["weights"]
    assert ours["stage_1"] == theirs["stage_1"]
    assert ours["stage_2"] != theirs["stage_2"]


@pytest.mark.slow
def test_a_stage_without_a_teacher_records_none_and_leaves_the_run_its_own(tmp_path: Path):
    def mixed(raw: dict[str, Any]) -> None:
        own = {"task": "tiny_weather", "teacher": {**raw["teacher"], "seed": 7}}
        raw.update(stages=[own, {"task": "tiny_currency", "adapter": "sft"}, "tiny_reminder"], probes=[])

    folder = run(RunSpec(changed_suite(tmp_path, mixed), "aopd", 0, out=tmp_path / "runs"))
    done = [json.loads(path.read_text())["teacher"] for path in sorted(folder.glob("stage_*/train/done.json"))]
    weights = manifest(folder)["weights"]
    assert done == [weights["stage_1_teacher"], None, weights["teacher"]]
    assert weights["stage_1_teacher"] != weights["teacher"]


@pytest.mark.slow
def test_a_tracker_gets_steps_and_scores_and_changes_no_number(micro: Suite, aopd: Path, tmp_path: Path):
    folder = run(RunSpec(micro.model_copy(update={"trackers": ("tensorboard",)}), "aopd", 0, out=tmp_path))
    assert manifest(folder)["config_hash"] == manifest(aopd)["config_hash"]
    assert steps(folder) == steps(aopd)
    events = EventAccumulator(str(folder / "trackers/tensorboard")).Reload()
    entropies = [(event.step, pytest.approx(event.value, rel=1e-5)) for event in events.Scalars("train/entropy")]
    assert entropies == [(number, line["entropy"]) for number, line in enumerate(steps(folder))]
    lengths = [stage["steps"] for stage in manifest(folder)["stages"]]
    assert [event.step for event in events.Scalars("score/tiny_weather")] == [0, lengths[0], sum(lengths)]


@pytest.mark.slow
def test_the_display_gets_the_entropy_of_every_step(micro: Suite, tmp_path: Path):
    events: list[Event] = []
    folder = run(RunSpec(micro, "aopd", 0, out=tmp_path), events.append)
    entropies = [event.figures["entropy"] for event in events if event.figures]
    assert entropies == [line["entropy"] for line in steps(folder)]
