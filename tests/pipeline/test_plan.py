"""What is shown before anything runs: the plan, the list of tasks, and a check that detects a bad task."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.cli.task_commands import task_table
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, TaskError
from harness.lmeval.library import TaskLibrary
from harness.lmeval.traps import traps as traps_of
from harness.lmeval.trial import spoil
from harness.pipeline.dry_run import print_dry_run
from harness.pipeline.resources import RunResources
from harness.pipeline.task_check import check_task
from harness.rundir.process.progress import Event
from harness.terminal.console import SafeConsole
from tests.support.models import DOCS, TASK_FILE, micro_suite, write_task, write_yaml


def wide_console() -> tuple[SafeConsole, io.StringIO]:
    text = io.StringIO()
    return SafeConsole(file=text, width=200, no_color=True), text


def checked(name: str, include: Path | None = None) -> tuple[bool, str]:
    console, text = wide_console()
    passed = check_task(console, name, [include] if include else [], [])
    return passed, text.getvalue()


def traps(text: str) -> list[str]:
    return [line.removeprefix("trap: ") for line in text.splitlines() if line.startswith("trap: ")]


@pytest.mark.parametrize("name", ["tiny_weather", "tiny_arithmetic", "tiny_long_sums", "tiny_reminder"])
def test_shipped_tasks_pass_without_a_trap(name: str):
    passed, text = checked(name)
    assert passed
    assert traps(text) == []
    assert f"{name}: grader passes, 0 traps" in text


def test_a_check_shows_prompts_references_and_grades():
    _, text = checked("tiny_weather")
    for split in ("training", "evaluation"):
        assert f"tiny_weather: {split} prompt and reference" in text
    assert "<|im_start|>user" in text
    assert '{"name":"weather","arguments":{"city":' in text
    assert text.count("strict: reference 1 (must be 1); spoiled: empty 0, changed 0 ") == 2


def test_a_sound_made_up_task_passes(tmp_path: Path):
    write_task(tmp_path)
    passed, text = checked("made_up", tmp_path)
    assert passed, text
    assert traps(text) == []


def test_a_task_can_be_checked_by_its_path(tmp_path: Path):
    assert checked(str(write_task(tmp_path)))[0]
    with pytest.raises(ConfigError, match=r"not a task file; .*`task:` name"):
        checked(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("grader", "shown"),
    [
        ('return {"strict": 1.0, "parsed": 1.0}', "reference 1 (must be 1); spoiled: empty 1,"),
        ('return {"strict": 0.0, "parsed": 1.0}', "reference 0 (must be 1)"),
        ('return {"strict": float(doc["target"][0] in results[0] or not results[0]), "parsed": 1.0}', "empty 1,"),
    ],
)
def test_a_grader_that_cannot_tell_right_from_wrong_is_found_out(grader: str, shown: str, tmp_path: Path):
    write_task(tmp_path, grader=grader)
    passed, text = checked("made_up", tmp_path)
    assert not passed
    assert shown in text
    assert "made_up: grader FAILS" in text


def without(*keys: str) -> dict[str, Any]:
    generation: Any = TASK_FILE["generation_kwargs"]
    return {"generation_kwargs": {key: value for key, value in generation.items() if key not in keys}}


SAME: dict[str, Any] = {"docs": {"train": DOCS["train"][:3], "test": [*DOCS["train"][:2], *DOCS["test"]]}}
TWICE: dict[str, Any] = {"docs": {"train": DOCS["train"], "test": [*DOCS["test"], *DOCS["test"][:2]]}}


@pytest.mark.pitfall(
    "lm-eval's model classes read a task file without do_sample differently when it runs under bare lm-eval",
    area="lm-eval",
    guard="`harness/lmeval/traps.py` reports it as a trap in `harness tasks check`",
    evidence="the trap looks only at the required settings",
)
@pytest.mark.parametrize(
    ("changes", "trap"),
    [
        (without("max_gen_toks"), "generation_kwargs lack max_gen_toks"),
        (without("until"), "generation_kwargs lack until"),
        (without("temperature"), "generation_kwargs lack temperature"),
        (without("do_sample"), "generation_kwargs lack do_sample"),
        (
            {"generation_kwargs": {**without()["generation_kwargs"], "do_sample": True}},
            "do_sample is true with temperature 0",
        ),
        ({"docs": {"train": [], "test": DOCS["test"]}}, "training split is empty"),
        ({"repeats": 3}, "repeats keeps the first answer"),
        (SAME, "2 test prompts are also training prompts"),
        (TWICE, "2 test items are duplicates"),
        ({"metadata": {"version": 1.0}}, "metadata.harness.metric is not set: strict "),
        (
            {"metric_list": [{"metric": "strict", "aggregation": "mean"}]},
            "metric strict .*higher_is_better",
        ),
        ({"num_fewshot": 2, "fewshot_split": "train"}, "num_fewshot is 2"),
        (
            {
                "metadata": {
                    "version": 1.0,
                    "harness": {"metric": "strict", "training_target": "target", "memorise": True},
                }
            },
            "metadata.harness.memorise is set",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_trap_is_named(changes: dict[str, Any], trap: str, tmp_path: Path):
    write_task(tmp_path, **changes)
    _, text = checked("made_up", tmp_path)
    joined = " ".join(traps(text)) or text
    assert re.search(trap, joined)


@pytest.mark.pitfall(
    "a data set on the hub without a pinned revision may change after the results are made",
    area="lm-eval",
    guard="`harness/lmeval/traps.py` reports it as a trap",
    evidence="the trap is removed",
)
@pytest.mark.slow
def test_data_that_is_fetched_without_a_revision_is_a_trap(tmp_path: Path):
    for split, docs in DOCS.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, docs)))
    plain = {"task": "fetched", **TASK_FILE, "dataset_path": str(tmp_path / "data"), "process_results": None}
    found = []
    for pinned in ({}, {"dataset_kwargs": {"revision": "0" * 40}}):
        write_yaml(tmp_path / "tasks" / "fetched.yaml", {**plain, **pinned})
        task = TaskLibrary([tmp_path / "tasks"]).load("fetched")
        assert not [trap for trap in traps_of(task) if "revision" in trap], "a local folder has no revisions"
        task.config.dataset_path = "owner/records"
        found.append([trap for trap in traps_of(task) if "revision" in trap])
    ((trap,), pinned) = found
    assert trap.startswith("dataset_kwargs.revision is not pinned")
    assert pinned == []


def test_a_task_with_several_faults_is_found_out_in_all_of_them(tmp_path: Path):
    same = {"train": DOCS["test"], "test": DOCS["test"]}
    write_task(tmp_path, docs=same, grader='return {"strict": 1.0, "parsed": 1.0}', **without("max_gen_toks"))
    passed, text = checked("made_up", tmp_path)
    assert not passed
    assert "grader FAILS, 2 traps" in text
    assert "6 test prompts are also training" in text


def test_missing_records_are_refused_with_what_was_expected(tmp_path: Path):
    console, _ = wide_console()
    with pytest.raises(ConfigError, match=r"--data: .*nowhere does not exist; .*NAME=PATH"):
        check_task(console, "tiny_weather", [], [f"x={tmp_path / 'nowhere'}"])
    for bare in ("gsm8k", "gsm8k=", "=/data"):
        with pytest.raises(ConfigError, match=rf"--data {bare}: expected NAME=PATH"):
            check_task(console, "tiny_weather", [], [bare])


def test_the_list_names_every_task_with_its_metric_and_file(tmp_path: Path):
    write_task(tmp_path)
    console, text = wide_console()
    console.print(task_table([tmp_path]))
    rows = {line.split("│")[1].strip(): line for line in text.getvalue().splitlines() if line.startswith("│")}
    assert {"made_up", "tiny_weather", "tiny_arithmetic", "gsm8k", "toolalpaca"} <= set(rows)
    assert "strict" in rows["tiny_weather"]
    assert "tools" in rows["tiny_weather"]
    assert "made_up.yaml" in "".join(text.getvalue().split()).replace("│", "")


def plan(suite: Suite, *entries: str) -> str:
    console, text = wide_console()
    print_dry_run(console, [RunSpec(suite, entry, 0) for entry in entries])
    return text.getvalue()


def test_a_plan_shows_the_resolved_suite_its_stages_and_the_work(micro: Suite):
    text = plan(micro, "opd", "aopd")
    assert "student: scratch weak" in text
    assert "lr: 0.001" in text
    assert "null" not in text
    assert "schedule: constant" in text  # a default that the file does not state
    assert "stages of micro, order default" in text
    # 2 runs of 2 stages of 2 steps of 4 rollouts of at most 24 tokens; after each stage 3 tasks of 4 items
    for what, value in {
        "runs": "2",
        "training steps": "8",
        "rollouts": "32",
        "response tokens, at most": "768",
    }.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"│ {what}")]
        assert line.split("│")[2].strip() == value
    assert "12 with 48 items" in text
    for entry in ("opd", "aopd"):
        assert re.search(rf"prompts under {entry}: .*context of 128 tokens", text)
    assert "runs/micro/opd/default/seed0, runs/micro/aopd/default/seed0" in text


def changed(folder: Path, **changes: Any) -> Suite:
    return load_suite(str(write_yaml(folder / "suite.yaml", {**micro_suite(), **changes})))


def test_a_plan_says_so_where_a_model_is_not_here_to_be_checked(tmp_path: Path):
    suite = changed(tmp_path, student={"kind": "pretrained", "path": "Qwen/Qwen3-0.6B-Base"})
    text = plan(suite, "opd")
    assert re.search(r"prompts under opd: not checked, .*\(Qwen/Qwen3-0\.6B-Base ", text)


def test_a_plan_checks_prompts_of_a_local_model(tmp_path: Path, student_folder: Path):
    student = {"kind": "pretrained", "path": str(student_folder)}
    text = plan(changed(tmp_path, student=student), "opd")
    assert re.search("prompts under opd: .*context of 128 tokens", text)


def test_a_plan_refuses_what_the_run_would_refuse(tmp_path: Path):
    long = {**micro_suite()["training"], "max_new_tokens": 120}
    with pytest.raises(TaskError, match=r"context of 128\b"):
        plan(changed(tmp_path, training=long), "opd")
    write_task(tmp_path / "tasks", training_split=None)
    with pytest.raises(TaskError, match=r"task made_up .*no `training_split`"):
        plan(changed(tmp_path, stages=["made_up"], include=["tasks"]), "opd")


@pytest.mark.pitfall(
    "supervised training on references that are cut",
    area="Grading",
    guard="`harness/lmeval/checks.py`: the dry run and each start of a run name the stage and the share that is cut",
    evidence="the sentence about cut references is removed",
)
def test_references_that_are_cut_are_named_with_their_share(tmp_path: Path):
    targets = ["abc", "abc", "abc", "the quick brown fox jumps over the lazy dog"]
    write_task(
        tmp_path / "tasks",
        docs={"train": [{"prompt": f"say {t} {i}", "target": t} for i, t in enumerate(targets)], "test": DOCS["test"]},
    )
    student = {**micro_suite()["student"], "tokenizer": {"vocab_size": 261, "tasks": ["made_up"]}}
    student["warmup"] = {"mixture": {"made_up": 1}, "strengths": {"weak": {"steps": 1}}}
    common = {"student": student, "stages": ["made_up"], "probes": [], "include": ["tasks"]}
    suite = changed(tmp_path, **common, training={**micro_suite()["training"], "max_new_tokens": 8})
    (warning,) = [line for line in plan(suite, "sft", "opd").splitlines() if "references" in line and "warning" in line]
    assert "sft: stage made_up" in warning
    assert "1 of 4 of made_up (25.00%)" in warning
    events: list[Event] = []
    resources = RunResources(RunSpec(suite, "sft", 0, out=tmp_path / "runs"), events.append)
    resources.check()
    assert [event.activity for event in events if event.warning and "25.00%" in event.activity]
    whole = changed(tmp_path, **common, training={**micro_suite()["training"], "max_new_tokens": 60})
    assert "are cut" not in plan(whole, "sft")


@pytest.mark.parametrize(
    ("target", "spoiled"),
    [
        ("19 + 3 = 22", "20 + 4 = 33"),
        (r"The area is 2 times as large, so \boxed{\pi}", r"The area is 3 times as large, so \dexobx{\ipx}"),
        ("12 is odd: no ).", "23 is odd: onx )."),
        ("no", "onxx"),
    ],
)
def test_a_spoiled_reference_is_wrong_where_its_answer_stands(target: str, spoiled: str):
    assert spoil(target) == spoiled
