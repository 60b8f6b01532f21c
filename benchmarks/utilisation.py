"""Measure how much of the machine the student's passes use: their operations per second against the fastest product's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.setting import Setting
from harness.config.processor import cpu_has_bfloat16
from harness.lm.logprobs import StudentRequest
from harness.lm.precision import autocast
from harness.lm.rollouts import Batch, Rollout, make_batches

SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (4096, 8192)}
PEAK_SECONDS = 0.2


def peak_rate(precision: str, device: str = "cpu") -> Callable[[int], float]:
    """Return a measure of the best matrix-product rate over square sizes in a precision, in GFLOP/s."""
    dtype, sizes = getattr(torch, precision), SIZES[device]
    if device == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16():
        sizes = sizes[:1]  # emulated products of the larger sizes take minutes
    return lambda _: max(_square_rate(size, dtype, device) for size in sizes) / 1e9


def student_rate(setting: Setting) -> Callable[[int], float]:
    """Return a measure of the student's forward and backward over one batch of rollouts, in GFLOP/s.

    All matrix products that run are counted, including those over padding and the head's second pass in the backward.
    """
    batch = rollout_batch(setting)
    flops = count_flops(lambda: _forward_backward(setting, batch))

    def rate(_: int) -> float:
        start = time.perf_counter()
        _forward_backward(setting, batch)
        return flops / (time.perf_counter() - start) / 1e9

    return rate


def count_flops(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of all matrix products and attention in `work`.

    torch's counter does not know the CPU's attention operations, so it is given torch's own formulas for attention.
    """
    ops: Any = torch.ops.aten
    attention = {
        ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        ops._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


def rollout_batch(setting: Setting) -> Batch:
    """Return one batch of the student's own rollouts."""
    examples = setting.prompts(0)[: setting.context.training.prompts_per_step]
    completions = setting.context.engine.generate([e.prompt for e in examples], setting.sampling(0))
    rollouts = [Rollout(e, c.tokens, c.finish) for e, c in zip(examples, completions, strict=True)]
    return make_batches(rollouts, "sequence_mean", None)[0]


def _forward_backward(setting: Setting, batch: Batch) -> None:
    student = setting.context.student
    student.zero_grad(set_to_none=True)
    with autocast("cpu", setting.context.training.autocast):
        chosen = student(batch, batch.targets[:, None], StudentRequest(setting.context.training.temperature)).chosen[
            :, 0
        ]
    (-chosen * batch.weights).sum().backward()


def _square_rate(size: int, dtype: torch.dtype, device: str) -> float:
    left, right, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.mm(left, right, out=out)
    synchronise()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < PEAK_SECONDS / len(SIZES[device]) or not done:
        torch.mm(left, right, out=out)
        synchronise()
        done += 1
    return 2 * size**3 * done / elapsed
