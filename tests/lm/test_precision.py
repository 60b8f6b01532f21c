"""Precisions of training: master weights keep small steps, the output layer is cast once, layers are computed again."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.conformance.all_checks import check_adapter, failures
from adapters.conformance.contract import Killed, MemorySnapshots
from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from harness.adapter import StageContext, make_adapter
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import AdapterEntry, Suite
from harness.config.training import Optimizer, Training
from harness.errors import ConfigError, ModelError
from harness.lm import tiles
from harness.lm.logprobs import Head, StudentForward, selected_logprobs
from harness.lm.optimiser import Updater
from harness.lm.rollouts import Batch, make_batches
from harness.lm.trained.recompute import recomputed_layers
from harness.lm.trained.trainable import trainable
from harness.lm.trained.weights import MasterWeights
from harness.pipeline.adapter_checks import check_adapters
from harness.pipeline.run import run
from harness.rundir.files import SNAPSHOT
from tests.support.models import gradients, micro_suite, qwen3, rollout, write_yaml
from tests.support.runs import manifest

ROLLOUTS = [rollout([3, 4, 5], [6, 7, 2]), rollout([8], [9, 10, 11, 2]), rollout([3, 1], [2])]


def loss_of(module: torch.nn.Module, batch: Batch) -> Tensor:
    return -(module(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()


def weights_of(student: StudentForward) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


@pytest.mark.parametrize(
    ("written", "precision", "autocast"),
    [
        ({}, "float32", None),
        ({"autocast": "bfloat16"}, "autocast", "bfloat16"),
        ({"precision": "autocast"}, "autocast", "bfloat16"),
        ({"precision": "bfloat16_master", "autocast": "bfloat16"}, "bfloat16_master", None),
        ({"precision": "float32", "autocast": "bfloat16"}, "float32", None),
    ],
)
def test_precision_and_the_older_key_say_the_same(written: dict[str, str], precision: str, autocast: str | None):
    training = Training.model_validate(written)
    assert (training.precision, training.autocast) == (precision, autocast)
    assert Training.model_validate(training.model_dump()) == training


def test_a_training_with_earlier_keys_alone_is_written_as_before():
    dumped = Training.model_validate({"autocast": "bfloat16"}).model_dump(mode="json")
    assert {"precision", "tf32", "activation_checkpointing"}.isdisjoint(dumped)


def test_master_weights_keep_steps_that_bfloat16_would_round_away():
    steps, rate = 40, 1e-5

    def moved(precision: str) -> tuple[Tensor, Tensor]:
        student = StudentForward(qwen3(dtype=torch.float32))
        before = torch.cat([p.detach().flatten() for p in student.parameters()])
        (batch,) = make_batches(ROLLOUTS, "token_mean", None)
        with trainable(student, "bfloat16_master" if precision == "masters" else "float32") as weights:
            if precision == "narrow":
                student.to(torch.bfloat16)
            updater = Updater(weights.module, Optimizer(lr=rate, weight_decay=0.0), steps)
            for _ in range(steps):
                updater.update([batch], lambda b: loss_of(weights.module, b))
                weights.publish()
        after = torch.cat([p.detach().float().flatten() for p in student.parameters()])
        return before, after - (before.bfloat16().float() if precision == "narrow" else before)

    _, exact = moved("float32")
    _, kept = moved("masters")
    _, lost = moved("narrow")
    assert float(torch.nn.functional.cosine_similarity(exact, kept, dim=0)) > 0.95
    assert float(lost.norm()) < 0.6 * float(kept.norm())


def test_the_weights_are_the_rounded_masters_while_they_train_and_the_masters_afterwards():
    student = StudentForward(qwen3(dtype=torch.float32))
    student.model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before, buffers = weights_of(student), {name: b.dtype for name, b in student.named_buffers()}
    with trainable(student, "bfloat16_master") as weights:
        assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
        assert {name: b.dtype for name, b in student.named_buffers()} == buffers
        for name, master in weights.module.named_parameters():
            torch.testing.assert_close(master.detach(), before[name], rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(student).items())
    assert not student.model.model.layers[0].mlp.up_proj.weight.requires_grad


def test_gradients_of_micro_batches_add_up_in_float32():
    student = StudentForward(qwen3(dtype=torch.float32))
    weights = MasterWeights(student)
    parts = make_batches(ROLLOUTS, "token_mean", 1)
    alone: list[dict[str, Tensor]] = []
    for batch in parts:
        weights.module.zero_grad()
        loss_of(weights.module, batch).backward()
        alone.append(gradients(weights.module))
    weights.module.zero_grad()
    for batch in parts:
        loss_of(weights.module, batch).backward()
    for name, total in gradients(weights.module).items():
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, alone[0][name] + alone[1][name] + alone[2][name], rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("name", ["sft", "aopd", "gkd", "sdft", "ewc", "kl_to_start", "lora"])
def test_a_stage_with_master_weights_resumes_to_the_bit(name: str, tmp_path: Path):
    wrapped = {"of": "opd"} if name in ("ewc", "kl_to_start", "lora") else {}
    adapter = make_adapter(name, AdapterEntry(options={**wrapped, **({"top_k": 4} if name == "aopd" else {})}))
    subject = AdapterUnderTest(adapter, tmp_path)

    def stage() -> StageContext:
        return subject.stage(
            steps=4, dtype=torch.float32, scripted=False, reference_seed=0, precision="bfloat16_master"
        )

    def trained(snapshots: MemorySnapshots) -> dict[str, Tensor]:
        ctx = replace(stage(), snapshots=snapshots)
        train_small_stage(adapter, ctx)
        return weights_of(ctx.student)

    whole, kept = trained(MemorySnapshots()), MemorySnapshots(stop_at=2)
    with pytest.raises(Killed):
        trained(kept)
    resumed = trained(MemorySnapshots(kept.state))
    assert {value.dtype for value in whole.values()} == {torch.float32}
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert any(bool((value != value.bfloat16().float()).any()) for value in whole.values()), "no master came back"


def test_a_narrow_output_layer_follows_its_weights_and_has_gradients_in_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "NARROW_UNDER_AUTOCAST", {"cpu"})
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(50, 16, generator=generator, requires_grad=True))
    hidden = torch.randn(9, 16, generator=generator).requires_grad_()
    ids = torch.randint(50, (9, 3), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = selected_logprobs(hidden, head, ids).chosen
    assert found.dtype == torch.float32
    found.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32
    exact = head.weight.detach().double().requires_grad_()
    (hidden.detach().double() @ exact.T).log_softmax(-1).gather(-1, ids).sum().backward()
    assert exact.grad is not None
    assert float((head.weight.grad - exact.grad).norm() / exact.grad.norm()) < 0.02
    torch.optim.AdamW([head.weight], lr=0.1, fused=True).step()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head.for_products(hidden).weight.float(), head.weight.detach(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_layers_that_are_computed_again_have_the_same_gradients_to_the_bit(training: bool):
    student, calls = StudentForward(qwen3().train(training)), []
    (batch,) = make_batches(ROLLOUTS, "token_mean", None)
    loss_of(student, batch).backward()
    expected = gradients(student)
    student.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    student.zero_grad()
    with recomputed_layers(student, True):
        loss_of(student, batch).backward()
    assert len(calls) == 2, "the layer was not computed again"
    assert all(torch.equal(value, expected[name]) for name, value in gradients(student).items())
    assert "forward" not in vars(student.model.model.layers[0])


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="activation_checkpointing"), recomputed_layers(torch.nn.Linear(2, 2), True):
        pass


def test_conformance_holds_with_layers_computed_again():
    adapter = make_adapter("aopd", AdapterEntry(options={"top_k": 4}))
    outcomes = check_adapter(
        adapter, ("gradient", "accumulation", "masks", "resume"), {"activation_checkpointing": True}
    )
    assert not failures(outcomes)


@pytest.mark.slow
def test_a_killed_run_with_master_weights_ends_as_an_undisturbed_one(tmp_path: Path):
    suite: dict[str, Any] = micro_suite() | {"snapshot_minutes": 0, "probes": []}
    suite["training"] |= {"precision": "bfloat16_master", "steps": 8}
    suite["evaluation"] |= {"limit": 1, "drift": None}
    file = write_yaml(tmp_path / "micro.yaml", suite)
    command = ["run", str(file), "--adapter", "aopd", "--out", str(tmp_path / "killed")]
    killed = subprocess.Popen([sys.executable, "-m", "harness.cli.app", *command])
    snapshot = tmp_path / "killed/micro/aopd/default/seed0/stage_1_tiny_weather/train" / SNAPSHOT
    while not snapshot.exists() and killed.poll() is None:
        time.sleep(0.01)
    assert killed.poll() is None, "it ended before it could be killed"
    killed.kill()
    killed.wait()
    found, expected = (
        run(RunSpec(load_suite(str(file)), "aopd", 0, out=tmp_path / out)) for out in ("killed", "whole")
    )
    assert manifest(found)["weights"] == manifest(expected)["weights"]


def test_a_bfloat16_student_needs_master_weights():
    raw = micro_suite()
    raw["student"] = {"kind": "pretrained", "path": "nowhere", "dtype": "bfloat16"}
    raw["stages"] = [{"task": "tiny_weather", "training": {}}]
    with pytest.raises(ConfigError, match="bfloat16_master"):
        check_adapters(Suite.model_validate(raw), ["opd"])
    raw["stages"] = [{"task": "tiny_weather", "training": {"precision": "bfloat16_master"}}]
    check_adapters(Suite.model_validate(raw), ["opd"])
