"""Options and budgets that would be ignored, or turn a method into another, are refused in one sentence when they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.loop.training_loop import LoopAdapter
from harness.adapter import make_adapter
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Suite
from harness.config.training import Training
from harness.errors import ConfigError, ModelError
from harness.pipeline.run import run
from tests.support.models import micro_suite, write_yaml
from tests.support.stages import Recorder, stage


def made(name: str, **options: Any) -> Any:
    return make_adapter(name, AdapterEntry(options=options))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("fkl", {"top_k": None, "tail": "bucket"}, "tail: bucket .* but top_k is null"),
    ("fkl", {"top_k": None, "tail": "renormalise"}, "tail: renormalise .* but top_k is null"),
    ("aopd", {"symmetric": True}, "symmetric with threshold 0 sends every token to forward KL, .*; set a threshold above 0"),
    ("aopd", {"symmetric": True, "gate": "prob_diff", "threshold": -0.5}, "symmetric with threshold -0.5"),
    ("aopd", {"threshold": float("nan")}, "threshold is NaN; expected a number"),
    ("trl", {"beta": float("nan")}, "nan"),
    ("sdft", {"shown": "hello"}, r"the text has no \{demonstration\}, so the teacher reads no more"),
    ("kl_to_start", {"of": "sdft"}, r"'sdft' with these options moves the copy of the start .*ema_rate: 0"),
    ("kl_to_start", {"of": {"adapter": "replay", "options": {"of": "sdft"}}}, "'replay' with these options moves the copy"),
    ("kl_to_start", {"of": "sft"}, "'sft' with these options trains on responses that are not the student's own"),
    ("kl_to_start", {"of": "seqkd"}, "'seqkd' with these options trains on responses that are not"),
    ("kl_to_start", {"of": "gkd"}, "'gkd' with these options trains on responses that are not"),
    ("replay", {"of": {"adapter": "replay", "options": {"of": "opd"}}}, "the wrapped trainer replays already"),
    (
        "replay",
        {"of": {"adapter": "ewc", "options": {"of": {"adapter": "replay", "options": {"of": "opd"}}}}},
        "the wrapped trainer replays already",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSED, ids=[f"{n} {o}" for n, o, _ in REFUSED])
def test_options_that_would_be_ignored_or_degenerate_are_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        made(name, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fkl", {"top_k": None}),
        ("fkl", {"tail": "bucket"}),
        ("aopd", {"symmetric": True, "threshold": 0.5}),
        ("aopd", {"symmetric": True, "threshold": float("-inf")}),
        ("aopd", {"threshold": 0.0}),
        ("kl_to_start", {"of": {"adapter": "sdft", "options": {"ema_rate": 0}}}),
        ("kl_to_start", {"of": {"adapter": "gkd", "options": {"lmbda": 1}}}),
        ("kl_to_start", {"of": {"adapter": "replay", "options": {"of": "opd"}}}),
    ],
)
def test_their_sound_neighbours_are_taken(name: str, options: dict[str, Any]):
    assert made(name, **options)


UPDATES = [
    # six prompts, two generations of each: twelve rollouts, but six references
    ("sft", {}, 4, "does not divide the 6 rollouts of a step .6 prompts, 1 of each from the data.; change prompts_per_step$"),
    ("gkd", {"lmbda": 0.5}, 4, "6 rollouts of a step .6 prompts, 1 of each from the data"),
    ("gkd", {"lmbda": 0.0}, 4, "6 rollouts of a step"),
    ("gkd", {"lmbda": 1.0}, 5, "12 rollouts of a step .6 prompts, 2 of each from the student"),
    ("seqkd", {}, 5, "12 rollouts of a step .6 prompts, 2 of each from the teacher"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "updates", "message"), UPDATES)
def test_updates_must_divide_what_each_source_gives(name: str, options: dict[str, Any], updates: int, message: str):
    adapter = made(name, updates_per_rollout=updates, **options)
    with pytest.raises(ConfigError, match=message):
        adapter.refuse(Training(prompts_per_step=6, num_generations=2))


@pytest.mark.parametrize(("name", "options", "updates"), [("sft", {}, 3), ("gkd", {"lmbda": 0}, 2), ("opd", {}, 4)])
def test_a_step_takes_as_many_updates_as_were_asked_for(
    name: str, options: dict[str, Any], updates: int, recorder: type[Recorder]
):
    adapter: LoopAdapter = made(name, updates_per_rollout=updates, **options)
    adapter.train_stage(stage({"num_generations": 2}))
    (found,) = recorder.made
    assert len(found.losses) == found.total_updates == updates


def test_several_updates_without_a_ratio_are_warned_of(recorder: type[Recorder]):
    def warnings_of(**options: Any) -> list[str]:
        warnings: list[str] = []
        made("aopd", top_k=4, updates_per_rollout=2, **options).train_stage(replace(stage(), warn=warnings.append))
        return warnings

    (sentence,) = warnings_of()
    assert "updates_per_rollout is 2 and clip" in sentence
    assert warnings_of(clip=0.2) == []


def _strange(_: Any) -> None:
    raise ModelError("computes its logits in an unknown way")


@pytest.mark.parametrize(
    "where", ["harness.pipeline.train_stage", "harness.teachers.local"], ids=["student", "teacher"]
)
def test_a_student_or_teacher_of_an_unknown_architecture_is_refused_before_it_trains(
    where: str, micro: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"{where}.check_head", _strange)
    spec = RunSpec(micro, "opd", 0, out=tmp_path)
    with pytest.raises(ModelError, match="computes its logits"):
        run(spec)
    assert not list(spec.path.glob("stage_1_*/train/steps.jsonl"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_more_of_the_teachers_tokens_than_there_are_stop_a_run_before_anything_is_done(wrapped: bool, tmp_path: Path):
    inner: dict[str, Any] = {"adapter": "aopd", "options": {"top_k": 5000}}
    entry = {"adapter": "kl_to_start", "options": {"of": inner}} if wrapped else inner
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", {**micro_suite(), "adapters": {"wide": entry}})))
    spec = RunSpec(suite, "wide", 0, out=tmp_path)
    with pytest.raises(ConfigError, match=r"adapters\.wide: top_k is 5000, .*\b300 tokens"):
        run(spec)
    assert not (spec.path / "stage_0").exists()
