"""Random streams: derived by name, the same in every process, and none is advanced by another."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.lm import seeding
from harness.lm.seeding import (
    derive_seed,
    permutation,
    preserved_random_state,
    race_times,
    seed_global_generators,
)

SCRIPT = "from harness.lm.seeding import *; print(derive_seed(0, 'stage', 1, 'tiny_weather'), permutation(5, 7))"
NAMES = st.lists(st.one_of(st.integers(0, 99), st.text("abc", min_size=1, max_size=3)), max_size=4)


def test_seeds_and_orders_are_the_same_in_every_process():
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{derive_seed(0, 'stage', 1, 'tiny_weather')} {permutation(5, 7)}"


def test_seeds_and_orders_stay_what_they_are():
    # sha256("0/rollouts/3"), first 8 bytes big-endian, halved: a change here changes every published number
    assert derive_seed(0, "rollouts", 3) == 3540642967977675172
    # what numpy's PCG64 draws from seed 7
    assert permutation(5, 7) == [2, 0, 4, 1, 3]


@given(st.integers(0, 10**6), NAMES, st.integers(0, 10**6), NAMES)
def test_streams_differ_exactly_where_their_names_do(
    seed: int, names: list[str | int], other: int, more: list[str | int]
):
    same = [str(part) for part in (seed, *names)] == [str(part) for part in (other, *more)]
    assert (derive_seed(seed, *names) == derive_seed(other, *more)) == same
    assert 0 <= derive_seed(seed, *names) < 2**63


@given(st.integers(0, 200), st.integers(0, 2**63 - 1))
def test_a_permutation_holds_every_index_once(count: int, seed: int):
    assert sorted(permutation(count, seed)) == list(range(count))


@given(st.integers(0, 10**5), st.integers(-(2**63), 2**63 - 1))
def test_a_position_that_is_a_tensor_draws_as_its_number_does(position: int, seed: int):
    seeds = torch.tensor([seed, 7])
    assert race_times(seeds, torch.tensor([position]), 5).equal(race_times(seeds, position, 5))


def test_no_time_of_a_race_is_infinite(monkeypatch: pytest.MonkeyPatch):
    """A token with an infinite time could not be drawn, although it is the only one left."""
    monkeypatch.setattr(seeding, "_mix", lambda values: torch.full_like(values, -1))
    times = race_times(torch.tensor([1]), 0, 3)
    assert times.isfinite().all()
    assert times.max() < 18


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_every_generator_gets_its_state_back():
    seed_all(5)
    expected = draw()
    seed_all(5)
    with preserved_random_state():
        seed_all(99)
        draw()
    assert draw() == expected


def test_every_generator_gets_its_state_back_after_an_error():
    seed_all(5)
    expected = draw()
    seed_all(5)

    def fail() -> None:
        with preserved_random_state():
            draw()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert draw() == expected


def test_seeding_the_global_generators_repeats_python_numpy_and_torch():
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), torch.rand(1).item()

    with preserved_random_state():
        seed_global_generators(2**62 + 1)
        first = draws()
        seed_global_generators(2**62 + 1)
        again = draws()
        seed_global_generators(2**62 + 2)
        other = draws()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
