"""A user's own command as a training method: what it receives, what is accepted from it, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.loop.prompts import prompt_batches
from adapters.trainers import external_process
from adapters.trainers.examples.plain_sft import read_steps
from adapters.trainers.external import External
from adapters.trainers.external_results import ReturnedSteps
from harness.adapter import StageContext, StageResult, make_adapter
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Suite
from harness.errors import ConfigError
from harness.pipeline.adapter_checks import check_adapters
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from harness.pipeline.run import run
from harness.teachers.local import LocalTeacher
from tests.support.external_commands import python, refused, same, stage, weights
from tests.support.models import micro_suite, qwen3, write_yaml

PLAIN_SFT = [
    *(
        "{python}",
        "-m",
        "adapters.trainers.examples.plain_sft",
        "--checkpoint",
        "{checkpoint}",
        "--prompts",
        "{prompts}",
    ),
    *("--config", "{config}", "--output", "{output}", "--steps", "{steps}"),
]


STAGE = "stage_1_tiny_weather/train"


COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_process, "POLL_SECONDS", 0.05)


def changed(ctx: StageContext, change: Callable[[Any], Any]) -> str:
    """Return the sentence on a checkpoint whose config is changed by `change`, with weights that suit it."""
    config = change(ctx.student.model.config.to_dict())
    other = type(ctx.student.model)(type(ctx.student.model.config)(**config))
    other.save_pretrained(ctx.folder / "other")
    return refused(python(COPY, str(ctx.folder / "other")), ctx)


@pytest.mark.slow
def test_a_run_with_the_shipped_example_learns_what_sft_learns(tmp_path: Path):
    raw = {
        **micro_suite(),
        "teacher": None,
        "stages": ["tiny_weather"],
        "probes": [],
        "adapters": {"external": {"options": {"command": PLAIN_SFT}}, "sft": {}},
    }
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", raw)))
    theirs, ours = (run(RunSpec(suite, name, 0, out=tmp_path)) for name in ("external", "sft"))
    found, expected = (load_file(d / STAGE / "checkpoint/model.safetensors") for d in (theirs, ours))
    assert found.keys() == expected.keys()
    assert all((found[key] - expected[key]).abs().max() < 1e-4 for key in found)
    logs = [[json.loads(line) for line in (d / STAGE / "steps.jsonl").open()] for d in (theirs, ours)]
    assert [line["step"] for line in logs[0]] == [0, 1]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], rel=1e-3)
    left = {path.name for path in (theirs / STAGE / "external").iterdir()}
    assert left == {"prompts.jsonl", "config.json", "steps.jsonl", "output.log"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_to_the_bit(tmp_path: Path):
    found: list[dict[str, torch.Tensor]] = []
    for name in "ab":
        (tmp_path / name).mkdir()
        ctx = stage(tmp_path / name)
        assert External(command=tuple(PLAIN_SFT)).train_stage(ctx) == StageResult(2)
        found.append(weights(ctx.student.model))
    assert same(*found)
    assert not same(found[0], weights(stage(tmp_path).student.model))


def test_the_command_is_given_prompts_in_every_adapters_order_and_the_resolved_budget(tmp_path: Path):
    ctx = stage(tmp_path, max_new_tokens=7)
    python(COPY, "{checkpoint}").train_stage(ctx)
    steps = read_steps(tmp_path / "external" / "prompts.jsonl")
    batches = prompt_batches(ctx)
    for items in steps:
        examples = next(batches)
        assert [item["item_id"] for item in items] == [e.item_id for e in examples]
        assert [item["prompt_ids"] for item in items] == [e.prompt for e in examples]
        assert [item["target_ids"] for item in items] == [e.target for e in examples]
    item = next(item for step in steps for item in step if item["item_id"] == "c")
    assert (item["task"], item["prompt"], item["target"]) == ("fake", "EF", "def")
    lines = (tmp_path / "external" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["item_id"] for line in lines] == [item["item_id"] for step in steps for item in step]
    config = json.loads((tmp_path / "external" / "config.json").read_text())
    assert (len(steps), config["steps"], config["max_new_tokens"]) == (2, 2, 7)
    assert (config["optimizer"]["lr"], config["device"]) == (1e-2, "cpu")
    assert (config["seed"], config["stop_ids"]) == (ctx.seed, list(ctx.renderer.stop_ids))


def test_the_command_starts_from_the_students_own_weights(tmp_path: Path):
    ctx = stage(tmp_path)
    before = weights(ctx.student.model)
    python(COPY, "{checkpoint}").train_stage(ctx)
    assert same(weights(ctx.student.model), before)


def test_a_teacher_is_asked_for_and_handed_over_only_where_the_command_names_it(tmp_path: Path):
    adapter = python(COPY, "{teacher}")
    assert (adapter.requirements.teacher, python(COPY, "{checkpoint}").requirements.teacher) == ("full", "none")
    ctx = stage(tmp_path)
    assert isinstance(ctx.teacher, LocalTeacher)
    adapter.train_stage(ctx)
    assert same(weights(ctx.student.model), weights(ctx.teacher.model))


def test_placeholders_may_stand_inside_arguments_and_paths_are_relative_to_where_the_harness_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import shutil, sys\nshutil.copytree(*(a.split('=')[1] for a in sys.argv[1:3]))")
    Path("stage").mkdir()
    External(command=("{python}", "train.py", "--from={checkpoint}", "--to={output}", "{seed}")).train_stage(
        stage(Path("stage"))
    )
    assert (tmp_path / "stage/external/output.log").read_text() == ""


def test_lines_that_the_command_writes_become_the_step_log_and_others_are_named_once(tmp_path: Path):
    lines = ['{"loss": 1.5, "seconds": {"step": 2}}', "epoch 1", '{"loss": "low"}', '{"step": 7, "entropy": null}']
    code = f"import sys; open(sys.argv[2], 'w').write({chr(10).join(lines)!r}); {COPY.replace('sys.argv[2]', 'sys.argv[3]')}"
    log, warned = [], []
    result = python(code, "{checkpoint}", "{steps}").train_stage(stage(tmp_path, log, warned))
    assert log == [
        {"step": 0, "loss": 1.5, "seconds": {"step": 2}, "warnings": []},
        {"step": 1, "entropy": None, "warnings": []},
    ]
    assert result == StageResult(2)
    (sentence,) = warned
    assert "'epoch 1' is not a JSON object" in sentence


def test_a_command_that_leaves_no_checkpoint_is_refused(tmp_path: Path):
    assert f"left no checkpoint in {tmp_path / 'external/output'}" in refused(python("pass"), stage(tmp_path))


def test_a_checkpoint_without_weights_or_with_spoiled_ones_is_refused(tmp_path: Path):
    empty = f"{COPY}; import pathlib; pathlib.Path(sys.argv[2], 'model.safetensors').unlink()"
    assert "cannot be loaded" in refused(python(empty, "{checkpoint}"), stage(tmp_path))
    spoiled = f"{COPY}; import pathlib; pathlib.Path(sys.argv[2], 'model.safetensors').write_bytes(b'none')"
    assert "cannot be loaded" in refused(python(spoiled, "{checkpoint}"), stage(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 3), ("vocab_size", 300), ("tie_word_embeddings", False), ("head_dim", 16)]
)
def test_a_checkpoint_of_another_architecture_is_refused_by_the_key_that_differs(key: str, value: Any, tmp_path: Path):
    ctx = stage(tmp_path)
    expected = getattr(ctx.student.model.config, key)
    sentence = changed(ctx, lambda config: {**config, "layer_types": None, key: value})
    assert f"has a different architecture: {key} is {value}, expected {expected}" in sentence


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_up(tmp_path: Path):
    ctx = stage(tmp_path)
    ctx.student.model.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    sentence = refused(python(COPY, str(tmp_path / "other")), ctx)
    assert "model.norm.weight is missing" in sentence


def test_a_checkpoint_with_another_vocabulary_is_refused(tmp_path: Path):
    ctx = stage(tmp_path)
    ctx.student.model.save_pretrained(tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(tmp_path / "other")
    sentence = refused(python(COPY, str(tmp_path / "other")), ctx)
    count = len(ctx.renderer.tokenizer)
    assert f"a different vocabulary ({count + 1} tokens, expected {count})" in sentence


def written(path: Path, lines: list[str], warned: list[str]) -> list[dict[str, Any]]:
    """Return the step log that a command's lines become."""
    log: list[dict[str, Any]] = []
    (path / "steps.jsonl").write_text("\n".join(lines))
    ReturnedSteps(path / "steps.jsonl", stage(path, log, warned)).pass_on(whole=True)
    return log


def test_a_commands_own_count_of_steps_is_left_out(tmp_path: Path):
    log = written(tmp_path, ['{"step": null, "loss": 1.0}', '{"step": 100, "loss": 2.0}'], [])
    assert [(line["step"], line["loss"]) for line in log] == [(0, 1.0), (1, 2.0)]


def test_guards_look_at_a_commands_steps_as_at_any_others(tmp_path: Path):
    warned: list[str] = []
    lines = [json.dumps({"entropy": 1.0 if i < 10 else 0.01, "loss": 1.0}) for i in range(25)] + ['{"loss": NaN}']
    log = written(tmp_path, lines, warned)
    assert [line["warnings"] for line in log if line["warnings"]] == [["entropy collapse"], ["non-finite"]]
    assert [sentence.split(":")[0] for sentence in warned] == ["step 19", "step 25"]
    assert log[-1]["loss"] is None


def test_a_checkpoint_with_weights_that_are_not_numbers_is_refused(tmp_path: Path):
    ctx = stage(tmp_path)
    ctx.student.model.save_pretrained(tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    sentence = refused(python(COPY, str(tmp_path / "other")), ctx)
    assert re.search(r"\bmodel\.norm\.weight .*NaN", sentence)


def test_weights_saved_more_coarsely_are_taken_with_a_warning(tmp_path: Path):
    warned: list[str] = []
    ctx = stage(tmp_path, warned=warned)
    qwen3(len(ctx.renderer.tokenizer), seed=3, dtype=torch.bfloat16).save_pretrained(tmp_path / "other")
    python(COPY, str(tmp_path / "other")).train_stage(ctx)
    assert {p.dtype for p in ctx.student.parameters()} == {torch.float32}
    (sentence,) = warned
    assert "torch.bfloat16" in sentence


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["train", "{output}", "{chekpoint}"], "placeholder {chekpoint}; known are python, checkpoint"),
        (["train", "{checkpoint}"], "has no {output}"),
        (["{checkpoint}/train.sh", "{output}"], "named by {checkpoint}, which does not exist"),
        ([], "at least 1 item"),
    ],
)
def test_a_command_that_cannot_work_is_refused_when_the_suite_is_read(command: list[str], sentence: str):
    with pytest.raises(ConfigError) as caught:
        make_adapter("mine", AdapterEntry(adapter="external", options={"command": command}))
    assert sentence in str(caught.value)


def test_a_program_that_is_not_there_is_refused_when_the_suite_is_read(micro: Suite):
    raw = {**micro.model_dump(mode="json"), "adapters": {"mine": {"adapter": "external", "options": {}}}}
    raw["adapters"]["mine"]["options"]["command"] = ["./no-such-program", "{output}"]
    with pytest.raises(ConfigError, match=r"'\./no-such-program', .*not executable"):
        check_adapters(Suite.model_validate(raw))
