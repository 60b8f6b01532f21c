"""Random streams: each use has its own stream, derived by name from the run's seed, so that no use disturbs another."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream that `names` describe, e.g. `derive_seed(0, "rollouts", stage, step)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


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
