"""Random streams: each use has its own stream, derived by name from the run's seed, so that no use disturbs another."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

DRAWS = "race"  # how sampled answers are drawn: part of the key of stored ones


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream that `names` describe, e.g. `derive_seed(0, "rollouts", stage, step)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def prompt_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return a seed for each prompt of a call, from its token ids and from how often the call held it before.

    It does not depend on the order of the prompts or on the rest of the call, so two policies that answer the same
    prompts under the same `seed` draw with common random numbers.
    """
    before: Counter[tuple[int, ...]] = Counter()
    seeds: list[int] = []
    for prompt in map(tuple, prompts):
        seeds.append(derive_seed(seed, "answer", *prompt, "again", before[prompt]))
        before[prompt] += 1
    return seeds


def race_times(seeds: Tensor, position: int | Tensor, width: int) -> Tensor:
    """Return standard exponential numbers (rows, width), a function of only each row's seed, the position and the column.

    `argmax(logits - log(times))` draws from softmax(logits) (the Gumbel-max trick). Two distributions p and q that share
    the numbers draw the same token with probability at least (1 - TV) / (1 + TV), TV their total variation distance.
    A position that is a tensor (1,) gives the same numbers as its number does.
    The generator is SplitMix64 (Steele et al. 2014) on a counter. `seeds` (rows,) are int64.
    """
    columns = torch.arange(1, width + 1, device=seeds.device, dtype=torch.long)
    places = position + 1 if isinstance(position, Tensor) else torch.full_like(seeds, position + 1)
    rows = _mix(_mix(seeds.clone()) + places * _GOLDEN)
    bits = _shifted(_mix(rows[:, None] + columns * _GOLDEN), 40)
    return bits.float().add_(0.5).mul_(-(2.0**-24)).log1p_().neg_()


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit number, like the two below


def _mix(values: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 values, which it overwrites, because decoding spends time here; products wrap."""
    values.bitwise_xor_(_shifted(values, 30)).mul_(0xBF58476D1CE4E5B9 - (1 << 64))
    values.bitwise_xor_(_shifted(values, 27)).mul_(0x94D049BB133111EB - (1 << 64))
    return values.bitwise_xor_(_shifted(values, 31))


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift int64 values to the right and fill with zeros; torch's own shift repeats the sign."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def permutation(count: int, seed: int) -> list[int]:
    """Return 0..count-1 in an order that depends only on `seed`."""
    return np.random.default_rng(seed).permutation(count).tolist()


def seed_global_generators(seed: int) -> None:
    """Seed python, numpy and torch. The harness does not draw from them, but a third party's trainer may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def preserved_random_state() -> Generator[None]:
    """Restore the state of every global generator afterwards, because lm-eval reseeds torch, numpy and random."""
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
