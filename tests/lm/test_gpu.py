"""On a CUDA device: log-probabilities, gradients and memory are what they are on a CPU, and a whole run works there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.aopd import AOPD
from adapters.gkd import GKD
from adapters.loop.divergences import generalised_jsd, reverse_kl
from adapters.loop.step import Step
from adapters.opd import OPD
from harness.lm import output_layer as tiled
from harness.lm import tiles
from harness.lm.logprobs import (
    Divergence,
    Head,
    StudentForward,
    TeacherRequest,
    divergence_of,
    selected_logprobs,
    teacher_scores,
)
from harness.lm.packing import packing
from harness.lm.rollouts import make_batches
from tests.support.dense import VARIANTS, C, V, assert_same_leaf_gradients, dense, full, inputs
from tests.support.models import (
    assert_same_gradients,
    gradients,
    local_teacher,
    micro_suite,
    qwen3,
    rollout,
    write_yaml,
)
from tests.support.stages import stage

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_device(variant: str) -> tuple[Tensor, Head, Tensor, Tensor]:
    """Return the CPU tests' inputs as leaves on the device."""
    hidden, head, ids, above = inputs(variant)
    weight = head.weight.detach().to(DEVICE).requires_grad_()
    bias = None if head.bias is None else head.bias.detach().to(DEVICE).requires_grad_()
    moved = Head(weight, bias, head.scale, head.softcap, head.temperature)
    return hidden.detach().to(DEVICE).requires_grad_(), moved, ids.to(DEVICE), above.to(DEVICE)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_dense_autograd(variant: str, fused: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "LARGE_TILE", (3, 4))
    monkeypatch.setattr(tiled, "FUSED", {"cuda"} if fused else set())
    hidden, head, ids, above = on_device(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found, expected = selected_logprobs(hidden, head, ids).chosen, dense(hidden, head, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above).sum(), (expected * above).sum(), leaves)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rest_outside_held_ids_equals_dense_autograd(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "LARGE_TILE", (3, 4))
    hidden, head, ids, above = on_device(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    found, logp = selected_logprobs(hidden, head, ids, ids[:, 1:]), full(hidden, head).log_softmax(-1)
    outside = logp.scatter(-1, ids[:, 1:], -torch.inf).logsumexp(-1)
    assert found.rest is not None
    torch.testing.assert_close(found.rest, outside, rtol=0, atol=1e-10)
    ours = (found.chosen * above).sum() + (found.rest * above[:, 0]).sum()
    assert_same_leaf_gradients(ours, (logp.gather(-1, ids) * above).sum() + (outside * above[:, 0]).sum(), leaves)


def test_the_kernels_work_on_this_device():
    from harness.lm.kernels.fused_passes import kernels_work

    assert kernels_work(torch.device(DEVICE), tiled.SelectedLogProbs.apply)
    assert tiled.fused_on(torch.device(DEVICE))


def test_an_id_outside_the_output_layer_has_no_score():
    hidden, head, ids, _ = on_device("plain")
    ids[2, 1] = V
    found = selected_logprobs(hidden, head, ids).chosen
    assert found.isnan().nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("divergence", "beta"),
    [
        (reverse_kl, None),
        (reverse_kl, 1.0),
        (lambda logq, logp: generalised_jsd(logq, logp, 0.3), 0.3),
        (lambda logq, logp: generalised_jsd(logq, logp, 0.0), 0.0),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_divergences_equal_dense_autograd(variant: str, divergence: Divergence, beta: float | None):
    hidden, head, ids, above = on_device(variant)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    rows = teacher_scores(hidden.flip(0).detach(), head, ids[:, 0], TeacherRequest(vocabulary=True)).rows
    assert rows is not None
    found = divergence_of(hidden, head, rows, divergence, beta)
    logp = full(hidden.flip(0), head).log_softmax(-1).detach()
    expected = divergence(full(hidden, head).log_softmax(-1), logp)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert_same_leaf_gradients((found * above[:, 0]).sum(), (expected * above[:, 0]).sum(), leaves)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_weights_get_the_gradients_of_float32_products(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "LARGE_TILE", (3, 4))
    hidden, head, ids, above = on_device(variant)
    narrow = [None if x is None else x.detach().bfloat16() for x in (hidden, head.weight, head.bias)]
    ours = [None if x is None else x.clone().requires_grad_() for x in narrow]
    exact = [None if x is None else x.double().requires_grad_() for x in narrow]
    for states, weight, bias, score in ((*ours, _selected), (*exact, dense)):
        assert states is not None
        assert weight is not None
        made = Head(weight, bias, head.scale, head.softcap, head.temperature)
        (score(states, made, ids) * above).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        if mine is not None and theirs is not None:
            assert mine.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0.05, atol=0.05)


def _selected(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    return selected_logprobs(hidden, head, ids).chosen.double()


@pytest.mark.parametrize("fused", [False, True])
def test_the_teachers_top_is_that_of_full_logits(fused: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "LARGE_TILE", (3, 1))
    monkeypatch.setattr(tiled, "FUSED", {"cuda"} if fused else set())
    hidden, head, ids, _ = on_device("all")
    scores = teacher_scores(hidden, head, ids[:, 0], TeacherRequest(top_k=C, entropy=True))
    expected = full(hidden, head).log_softmax(-1)
    torch.testing.assert_close(scores.top_logprobs, expected.topk(C).values)
    assert (scores.top_ids == expected.topk(C).indices).all()
    assert scores.entropy is not None
    torch.testing.assert_close(scores.entropy, -(expected.exp() * expected).sum(-1))
    assert int(scores.top_ids.max()) < V


def test_the_peak_beyond_the_heads_gradient_is_at_most_an_eighth_of_full_logits():
    tokens, vocabulary, width = 4096, 151_936, 1024
    head = Head(torch.randn(vocabulary, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True))
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(vocabulary, (tokens, 33), device=DEVICE)

    def peak(of: Tensor) -> int:
        of.backward()
        return torch.cuda.max_memory_allocated() - before

    peaks: list[int] = []
    for score in (_selected, lambda h, w, i: (h @ w.weight.T).float().log_softmax(-1).gather(-1, i)):
        hidden.grad = head.weight.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peaks.append(peak(score(hidden, head, ids).sum()))
    gradient = head.weight.numel() * head.weight.element_size()
    assert peaks[0] - gradient <= peaks[1] / 8, peaks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_batches_have_the_losses_and_gradients_of_padded_ones(dtype: torch.dtype):
    rollouts = [rollout([3, 4, 5], [6, 7, 2]), rollout([8], [9, 10, 11, 2]), rollout([3, 1], [2])]
    model, sentences = qwen3(dtype=dtype).to(DEVICE), list[str]()
    found: list[tuple[float, dict[str, Tensor]]] = []
    for packed in (False, True):
        with packing([model], packed, sentences.append):
            (batch,) = make_batches(rollouts, "token_mean", None, DEVICE, packed=packed)
            model.zero_grad()
            loss = -(StudentForward(model)(batch, batch.targets[:, None]).chosen[:, 0] * batch.weights).sum()
            loss.backward()
        found.append((loss.item(), gradients(model)))
    assert not sentences
    close = 1e-4 if dtype == torch.float32 else 0.05
    assert found[1][0] == pytest.approx(found[0][0], rel=close)
    assert_same_gradients(found[1][1], found[0][1], 2 * close)


@pytest.mark.parametrize("adapter", [OPD(), AOPD(top_k=4), GKD(lmbda=1)])
def test_asking_the_teacher_waits_for_nothing(adapter: Any, monkeypatch: pytest.MonkeyPatch):
    from harness.teachers.local import LocalTeacher

    original = Step._teacher_scores

    def strict(self: Step, batch: Any) -> Any:
        # transformers looks once a pass whether positions are those of a packed batch.
        monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    ctx = stage({"micro_batch": 2})
    student, teacher = qwen3().to(DEVICE), local_teacher()
    assert isinstance(teacher, LocalTeacher)
    teacher.model.to(DEVICE)
    lines: list[dict[str, Any]] = []
    moved = replace(ctx, student=StudentForward(student), teacher=teacher, device=DEVICE, log=lines.append)
    adapter.train_stage(moved)  # kernels are compiled and tried once
    monkeypatch.setattr(Step, "_teacher_scores", strict)
    adapter.train_stage(replace(moved, engine=stage().engine))
    assert all(line["seconds"]["teacher"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("adapter", "training"),
    [
        ("aopd", {}),
        ("sft", {}),
        ("aopd", {"precision": "bfloat16_master", "tokens_per_batch": 256, "activation_checkpointing": True}),
    ],
)
def test_a_whole_run_on_the_device(adapter: str, training: dict[str, Any], tmp_path: Path):
    raw = micro_suite()
    raw["training"] |= training
    suite = write_yaml(tmp_path / "micro.yaml", {**raw, "device": DEVICE})
    command = [sys.executable, "-m", "harness.cli.app", "run", str(suite), "--adapter", adapter, "--no-report"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=500)
    manifest = json.loads((tmp_path / "micro" / adapter / "default/seed0/manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["hardware"]["gpus"]
