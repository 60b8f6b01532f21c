"""Our training steps, timed by the loop's own step log, and the figures by which all trainers are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from adapters.loop.training_loop import LoopAdapter
from benchmarks.setting import Setting


@dataclass(frozen=True)
class Steps:
    """Consecutive training steps: total seconds by phase, and the responses that they trained on.

    `rest` is everything but generation and teacher: the student's forward, backward and update, batching, logging.
    """

    count: int
    generate: float
    teacher: float
    rest: float
    responses: int
    tokens: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole steps."""
        return self.generate + self.teacher + self.rest

    @property
    def tokens_per_second(self) -> float:
        """Response tokens per second of whole steps."""
        return self.tokens / self.seconds

    @property
    def steps_per_second(self) -> float:
        """Whole steps per second."""
        return self.count / self.seconds

    @property
    def response_length(self) -> float:
        """Mean response length in tokens, stop token included."""
        return self.tokens / self.responses


def our_steps(adapter: LoopAdapter, setting: Setting, seed: int) -> Steps:
    """Train with one of our adapters and return the counted steps."""
    lines: list[dict[str, Any]] = []
    context = replace(setting.with_seed(seed), log=lines.append)
    adapter.train_stage(context)
    return from_log(lines[1:], context.training.prompts_per_step * context.training.num_generations)


def from_log(lines: list[dict[str, Any]], responses: int) -> Steps:
    """Add up the lines of a step log; each step trained on `responses` responses."""
    seconds = {name: sum(line["seconds"][name] for line in lines) for name in ("generate", "teacher", "step")}
    return Steps(
        count=len(lines),
        generate=seconds["generate"],
        teacher=seconds["teacher"],
        rest=seconds["step"] - seconds["generate"] - seconds["teacher"],
        responses=responses * len(lines),
        tokens=round(sum(line["response_tokens_mean"] for line in lines) * responses),
    )
