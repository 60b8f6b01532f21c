"""One update: the schedule's learning rates, clipping, accumulation, and refusal of numbers that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config.training import Optimizer
from harness.errors import NotFiniteError
from harness.lm.optimiser import Updater, schedule
from harness.lm.rollouts import Batch

NO_BATCH: Any = None
SCHEDULES = ("constant", "linear", "cosine")


def settings(**changes: Any) -> Optimizer:
    return Optimizer.model_validate({"lr": 0.1, "weight_decay": 0.0, **changes})


class Vector(nn.Module):
    """A module whose only parameter `w` holds some numbers."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def with_plain_steps(updater: Updater) -> Updater:
    """Replace AdamW, which hides a gradient's size, by w -= gradient."""
    plain: Any = torch.optim.SGD(updater.parameters, lr=1.0)
    updater.optimizer = plain
    updater.scheduler = torch.optim.lr_scheduler.LambdaLR(plain, lambda _: 1.0)
    return updater


@pytest.mark.parametrize(
    ("kind", "expected"),
    # 3 of 13 updates warm up: 1/4, 2/4, 3/4. Then 10 updates: after 5 of them linear has 1 - 5/10 = 1/2, cosine
    # (1 + cos(pi/2))/2 = 1/2; after 8 linear has 0.2, cosine (1 + cos(0.8 pi))/2 = 0.0954915; at the end both have 0.
    [
        ("constant", {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 8: 1, 11: 1, 13: 1, 99: 1}),
        ("linear", {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 8: 0.5, 11: 0.2, 13: 0, 99: 0}),
        ("cosine", {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 8: 0.5, 11: 0.0954915, 13: 0, 99: 0}),
    ],
)
def test_schedules_have_their_hand_worked_factors(kind: str, expected: dict[int, float]):
    factor = schedule(settings(schedule=kind, warmup_steps=3), total=13)
    assert {update: factor(update) for update in expected} == pytest.approx(expected, abs=1e-7)


@given(st.sampled_from(SCHEDULES), st.integers(0, 20), st.integers(1, 60))
def test_no_schedule_leaves_0_to_1_or_rises_after_its_warm_up(kind: str, warmup: int, total: int):
    factor = schedule(settings(schedule=kind, warmup_steps=warmup), total)
    values = [factor(update) for update in range(total + 5)]
    assert all(0 <= value <= 1 for value in values)
    assert all(before >= after - 1e-12 for before, after in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_each_update_reports_the_learning_rate_it_used_and_takes_that_step():
    module = Vector(0.0)
    updater = Updater(module, settings(schedule="linear"), total_updates=4)
    lrs: list[float] = []
    for _ in range(4):
        before = module.w.item()
        lrs.append(updater.update([NO_BATCH], lambda _: module.w.sum()).lr)
        # AdamW moves by exactly lr under a constant gradient
        assert before - module.w.item() == pytest.approx(lrs[-1], rel=1e-4)
    assert lrs == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_losses_and_gradients_of_micro_batches_add_up():
    module = Vector(1.0, 2.0)
    updater = with_plain_steps(Updater(module, settings(grad_clip=100.0), 1))
    shares = iter([2.0, 3.0])
    batches: list[Batch] = [NO_BATCH, NO_BATCH]
    result = updater.update(batches, lambda _: next(shares) * module.w.sum())
    # (2 + 3) * (1 + 2) = 15; gradient 5 in both entries
    assert result.loss == pytest.approx(15)
    assert result.grad_norm == pytest.approx(math.sqrt(50))
    assert module.w.tolist() == pytest.approx([-4, -3])


def test_gradients_do_not_carry_over_to_the_next_update():
    module = Vector(0.0)
    updater = with_plain_steps(Updater(module, settings(grad_clip=100.0), 2))
    for _ in range(2):
        updater.update([NO_BATCH], lambda _: module.w.sum())
    assert module.w.item() == pytest.approx(-2)


def test_a_large_gradient_is_scaled_to_the_clip_and_reported_unclipped():
    module = Vector(0.0, 0.0)
    updater = with_plain_steps(Updater(module, settings(grad_clip=1.0), 2))
    result = updater.update([NO_BATCH], lambda _: (module.w * torch.tensor([3.0, 4.0])).sum())
    assert result.grad_norm == pytest.approx(5)
    # (3, 4) / 5
    assert module.w.tolist() == pytest.approx([-0.6, -0.8], rel=1e-5)
    result = updater.update([NO_BATCH], lambda _: (module.w * torch.tensor([0.3, 0.4])).sum())
    assert result.grad_norm == pytest.approx(0.5)
    assert module.w.tolist() == pytest.approx([-0.9, -1.2], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(bad: float):
    module = Vector(1.0, 2.0)
    updater = Updater(module, settings(), 1)
    with pytest.raises(NotFiniteError, match=f"loss {bad} .*not finite; .*learning rate"):
        updater.update([NO_BATCH], lambda _: module.w.sum() * bad)
    assert module.w.tolist() == [1, 2]


def test_a_finite_loss_with_an_infinite_gradient_stops_before_the_weights_change():
    module = Vector(0.0, 2.0)

    def loss_of(_: Batch) -> Tensor:
        return module.w.sqrt().sum()  # d sqrt(w)/dw is infinite at 0

    with pytest.raises(NotFiniteError, match="gradient norm inf"):
        Updater(module, settings(), 1).update([NO_BATCH], loss_of)
    assert module.w.tolist() == [0, 2]


def test_frozen_parameters_stay_as_they_are():
    module = Vector(1.0)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    module.register_parameter("frozen", frozen)
    Updater(module, settings(weight_decay=0.5), 1).update([NO_BATCH], lambda _: module.w.sum())
    assert frozen.item() == 1
    assert module.w.item() < 1
