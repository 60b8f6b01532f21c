"""Random responses to score, and whether two teachers' scores are the same."""

from __future__ import annotations

import torch

from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherScores
from harness.lm.rollouts import Batch, Example, Rollout, make_batches


def random_batches(student: Loaded, count: int = 6, seed: int = 0) -> list[Batch]:
    """Return batches of random responses of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    size = len(student.renderer.tokenizer)

    def ids(length: int) -> list[int]:
        return torch.randint(size, (length,), generator=generator).tolist()

    rollouts = [Rollout(Example("task", str(i), {}, ids(3 + i), []), ids(9 - i), "stop") for i in range(count)]
    return make_batches(rollouts, "sequence_mean", 4, "cpu")


def same_scores(found: TeacherScores, expected: TeacherScores, tolerance: float = 1e-5) -> bool:
    """Return whether two teachers name the same tokens with the same log-probabilities."""
    return bool(
        torch.equal(found.top_ids, expected.top_ids)
        and torch.allclose(found.sampled, expected.sampled, rtol=0, atol=tolerance)
        and torch.allclose(found.top_logprobs, expected.top_logprobs, rtol=0, atol=tolerance)
    )
