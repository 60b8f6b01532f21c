"""Random streams: each use has its own, derived by name from the run's seed, so that no use changes another's draws."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

LONGEST_TIME = 25 * math.log(2.0)  # that of 1 - 2^-25
DRAWS = "race"  # the method by which answers are sampled; part of the key of stored answers


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream that `names` identify, e.g. `derive_seed(0, "rollouts", stage, step)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def prompt_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return a seed for each prompt of a call, from its token ids and the number of equal prompts before it in the call.

    It depends neither on other prompts nor on their order, so two policies that answer the same prompts under the same
    `seed` use common random numbers.
    """
    before: Counter[tuple[int, ...]] = Counter()
    seeds: list[int] = []
    for prompt in map(tuple, prompts):
        seeds.append(derive_seed(seed, "answer", *prompt, "again", before[prompt]))
        before[prompt] += 1
    return seeds


def race_times(seeds: Tensor, position: int | Tensor, width: int) -> Tensor:
    """Return standard exponential random numbers (rows, width) that depend only on the row's seed, position and column.

    `argmax(logits - log(times))` draws from softmax(logits) (the Gumbel-max trick). Two distributions p and q that share
    the numbers draw the same token with probability at least (1 - TV) / (1 + TV), TV their total variation distance.
    `seeds` (rows,) are int64; `position` is a number or a tensor (1,). The generator is SplitMix64 (Steele et al. 2014) on a
    counter.
    """
    columns = torch.arange(1, width + 1, device=seeds.device, dtype=torch.long)
    places = position + 1 if isinstance(position, Tensor) else torch.full_like(seeds, position + 1)
    rows = _mix(_mix(seeds.clone()) + places * _GOLDEN)
    bits = _shifted(_mix(rows[:, None] + columns * _GOLDEN), 40)
    # The largest of the 2^24 values is rounded to 1 in float32, whose time would be infinite.
    return bits.float().add_(0.5).mul_(-(2.0**-24)).log1p_().neg_().clamp_(max=LONGEST_TIME)


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
    """Seed the global generators of Python, numpy and torch; the harness does not use them, but others' trainers may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def preserved_random_state() -> Generator[None]:
    """Restore the state of every global generator after the block; lm-eval, for example, seeds them."""
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
