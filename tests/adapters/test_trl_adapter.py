"""TRL's trainer behind the contract: our prompts, budget and stop tokens, its loss, and a student that can be saved."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.gkd import GKD
from adapters.loop.prompts import prompt_batches
from adapters.trainers.trl_distillation import TRLDistillation
from harness.adapter import StageContext
from harness.config.load import load_suite
from harness.config.models import Chat
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, TrainingError
from harness.lm.chat import Renderer
from harness.lm.checkpoints import load_checkpoint
from harness.pipeline.adapter_checks import check_adapters
from harness.pipeline.run import run
from harness.teachers.local import LocalTeacher
from tests.support.models import ScriptedEngine, byte_renderer, context, example, micro_suite, qwen3, write_yaml

trl = pytest.importorskip("trl")

STAGES = ("stage_1_tiny_weather", "stage_2_tiny_currency")
PROMPTS = [[65, 66, 67], [68], [69, 70, 71, 72], [73, 74], [75, 76, 77, 78, 79], [80, 81]]
BUDGET: dict[str, Any] = {"steps": 2, "prompts_per_step": 3, "optimizer": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    raw = {**micro_suite(), "adapters": {"trl": {}, "none": {}}}
    return load_suite(str(write_yaml(tmp_path_factory.mktemp("suite") / "micro.yaml", raw)))


@pytest.fixture(scope="module")
def finished(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(RunSpec(suite, "trl", 0, out=tmp_path_factory.mktemp("runs")))


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Everything that TRL generates, in its order."""
    found: list[list[int]] = []
    generate = trl.DistillationTrainer._generate

    def recorded(self: Any, prompts: Any) -> Any:
        output = generate(self, prompts)
        found.extend(output[1])
        return output

    monkeypatch.setattr(trl.DistillationTrainer, "_generate", recorded)
    return found


def stage(
    folder: Path, log: list[dict[str, Any]] | None = None, stop: tuple[str, ...] = (), **budget: Any
) -> StageContext:
    renderer: Any = byte_renderer(Chat(template="chatml", stop=stop))
    tokenizer, size = renderer.tokenizer, len(renderer.tokenizer)
    teacher = LocalTeacher(qwen3(size, seed=1, dtype=torch.float32), tokenizer, tokenizer)
    student = qwen3(size, dtype=torch.float32)
    examples = [example(prompt) for prompt in PROMPTS]
    ctx = context(student, ScriptedEngine([]), examples, {**BUDGET, **budget}, teacher, log)
    return replace(ctx, renderer=renderer, folder=folder)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for name in STAGES for line in (folder / name / "train/steps.jsonl").read_text().splitlines()
    ]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(folder)]


@pytest.mark.slow
def test_a_run_trains_every_stage_and_leaves_only_what_any_adapter_leaves(finished: Path, suite: Suite):
    found = json.loads((finished / "manifest.json").read_text())
    assert len({found["weights"][key] for key in ("start", "stage_1", "stage_2")}) == 3
    for name in STAGES:
        train = finished / name / "train"
        assert {path.name for path in train.iterdir()} == {"steps.jsonl", "checkpoint", "done.json"}
        assert json.loads((train / "done.json").read_text())["steps"] == 2
        loaded = load_checkpoint(train / "checkpoint", suite.student, "cpu")
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_the_step_log_has_what_reports_read(finished: Path):
    found = lines(finished)
    assert [line["step"] for line in found] == [0, 1, 0, 1]
    for line in found:
        assert 0 < line["loss"] < 10
        assert line["grad_norm"] > 0
        assert line["lr"] == 1e-3
        assert line["entropy"] > 0
        assert 0 < line["response_tokens_mean"] <= 24
        assert 0 <= line["truncated_share"] <= 1
        assert line["tokens"] > 4 * line["response_tokens_mean"]
        seconds = line["seconds"]
        assert seconds["step"] == pytest.approx(sum(seconds[p] for p in ("generate", "teacher", "student")), abs=1e-3)
        assert min(seconds.values()) > 0
        assert line["warnings"] == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_to_the_bit(finished: Path, suite: Suite, tmp_path: Path):
    torch.rand(3)  # what ran before must not matter
    again = run(RunSpec(suite, "trl", 0, out=tmp_path))
    assert untimed(again) == untimed(finished)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (again, finished)]
    assert manifests[0]["weights"] == manifests[1]["weights"]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_step_is_a_step_of_gkd_on_the_same_responses(beta: float, responses: list[list[int]], tmp_path: Path):
    logs: list[list[dict[str, Any]]] = [[], []]
    theirs = stage(tmp_path, logs[0], steps=1, prompts_per_step=6, temperature=0.8)
    before = weights(theirs.student.model)
    TRLDistillation(beta=beta).train_stage(theirs)
    ours = stage(tmp_path, logs[1], steps=1, prompts_per_step=6, temperature=0.8)
    ours = replace(ours, engine=ScriptedEngine(responses))
    GKD(beta=beta, lmbda=1, reduction="token_mean").train_stage(ours)
    for key in ("loss", "grad_norm", "lr", "entropy", "response_tokens_mean", "truncated_share", "tokens"):
        assert logs[0][0][key] == pytest.approx(logs[1][0][key], rel=1e-4), key
    expected = weights(ours.student.model)
    for name, value in weights(theirs.student.model).items():
        # Adam's first step has the size of the rate wherever there is any gradient: compare where its sign is certain.
        moved = (value - before[name]).abs() > 0.9e-3
        assert (value - expected[name])[moved].abs().max() < 1e-4, name


def test_prompts_are_those_of_every_adapter_each_answered_as_often_as_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked: list[list[int]] = []
    generate = trl.DistillationTrainer._generate
    monkeypatch.setattr(
        trl.DistillationTrainer, "_generate", lambda self, prompts: (asked.extend(prompts), generate(self, prompts))[1]
    )
    ctx = stage(tmp_path, num_generations=2)
    TRLDistillation().train_stage(ctx)
    batches = prompt_batches(ctx)
    assert asked == [e.prompt for _ in range(2) for e in next(batches) for _ in range(2)]


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path):
    found: list[dict[str, torch.Tensor]] = []
    for size in (None, 1):
        ctx = stage(tmp_path, micro_batch=size, optimizer={"lr": 1e-3, "eps": 1e-3})
        TRLDistillation().train_stage(ctx)
        found.append(weights(ctx.student.model))
    assert all((found[0][name] - found[1][name]).abs().max() < 1e-5 for name in found[0])


def test_the_schedule_is_the_suites(tmp_path: Path):
    log: list[dict[str, Any]] = []
    optimizer = {"lr": 1e-3, "schedule": "linear", "warmup_steps": 1}
    TRLDistillation().train_stage(stage(tmp_path, log, steps=3, optimizer=optimizer))
    assert [line["lr"] for line in log] == pytest.approx([5e-4, 1e-3, 5e-4])


def test_responses_end_at_the_suites_stop_tokens_and_nowhere_else(responses: list[list[int]], tmp_path: Path):
    ctx = stage(tmp_path, stop=("a", "b", "c"), steps=1, prompts_per_step=64, max_new_tokens=60)
    uniform = ctx.student.model.get_output_embeddings()
    torch.nn.init.zeros_(uniform.weight)
    TRLDistillation().train_stage(ctx)
    stops, eos = set(ctx.renderer.stop_ids), ctx.renderer.tokenizer.eos_token_id
    assert eos not in stops
    assert all(not stops & set(response[:-1]) for response in responses)
    assert {len(r) == 60 for r in responses if r[-1] not in stops} == {True}
    assert any(response[-1] in stops and len(response) < 60 for response in responses)
    after = [response[response.index(eos) + 1 :] for response in responses if eos in response[:-5]]
    assert after
    assert all(len(set(tokens)) > 1 for tokens in after), "decoding stopped at the tokenizer's own eos token"


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_only_the_weights_of_the_student_change(autocast: str | None, tmp_path: Path):
    ctx = stage(tmp_path, autocast=autocast)
    assert isinstance(ctx.teacher, LocalTeacher)
    student, teacher = ctx.student.model, ctx.teacher.model
    config, generation = student.config.to_dict(), student.generation_config.to_dict()
    before, teachers, random = weights(student), weights(teacher), torch.get_rng_state()
    TRLDistillation().train_stage(ctx)
    assert any(not torch.equal(value, before[name]) for name, value in weights(student).items())
    assert all(torch.equal(value, teachers[name]) for name, value in weights(teacher).items())
    assert (student.config.to_dict(), student.generation_config.to_dict()) == (config, generation)
    assert {(p.dtype, p.device.type, p.requires_grad) for p in student.parameters()} == {(torch.float32, "cpu", True)}
    assert not student.is_gradient_checkpointing
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not {"forward", "_original_forward"} & {*vars(student), *vars(teacher)}, "a forward pass is still wrapped"
    assert torch.equal(torch.get_rng_state(), random)
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_stops_the_stage_before_the_weights_change(tmp_path: Path):
    ctx = stage(tmp_path)
    assert isinstance(ctx.teacher, LocalTeacher)
    ctx.teacher.model.get_output_embeddings().weight.data.fill_(float("nan"))
    before = weights(ctx.student.model)
    with pytest.raises(TrainingError, match="not finite"):
        TRLDistillation().train_stage(ctx)
    assert all(torch.equal(value, before[name]) for name, value in weights(ctx.student.model).items())
    assert not list(tmp_path.iterdir())


def test_without_trl_the_suite_is_refused_in_one_sentence(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else find(name, *rest))
    with pytest.raises(
        ConfigError,
        match=r"^adapters\.trl, stage tiny_weather: .*TRL, .*not installed; .*`pip install",
    ):
        check_adapters(suite)


def test_micro_batches_that_do_not_divide_the_rollouts_are_refused(suite: Suite):
    raw = {**suite.model_dump(mode="json"), "adapters": {"trl": {"training": {"micro_batch": 3}}}}
    with pytest.raises(ConfigError, match=r"micro_batch 3 .*divide .*4 rollouts"):
        check_adapters(Suite.model_validate(raw))


def test_a_teacher_that_is_not_in_this_process_is_refused(tmp_path: Path):
    ctx = replace(stage(tmp_path), teacher=object())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TrainingError, match="not a model in this process"):
        TRLDistillation().train_stage(ctx)


def test_the_renderer_is_left_as_it_was(tmp_path: Path):
    ctx = stage(tmp_path)
    renderer: Renderer = ctx.renderer
    before = renderer.identity, renderer.tokenizer.padding_side, renderer.tokenizer.pad_token
    TRLDistillation().train_stage(ctx)
    assert (Renderer.identity.func(renderer), renderer.tokenizer.padding_side, renderer.tokenizer.pad_token) == before  # pyright: ignore[reportAttributeAccessIssue]


RELEASED = """
import gc, tempfile, weakref
from pathlib import Path
import torch
from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from adapters.trainers.trl_distillation import TRLDistillation

subject = AdapterUnderTest(TRLDistillation(), Path(tempfile.mkdtemp()))
ctx = subject.stage(dtype=torch.float32, scripted=False)
model = weakref.ref(ctx.student.model)
train_small_stage(subject.adapter, ctx)
del ctx
gc.collect()
optimisers = [o for o in gc.get_objects() if isinstance(o, torch.optim.Optimizer)]
assert model() is None, "the student lives on"
assert not optimisers, optimisers
"""


@pytest.mark.slow
def test_a_stages_models_and_optimiser_are_gone_when_it_is_over():
    # In a separate process: the first import of TRL kept them.
    done = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
