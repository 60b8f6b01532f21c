"""The order of a stage's prompts: each task has its share of them, and its items come epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from harness.adapter import StageContext
from harness.lm.rollouts import Example
from harness.lm.seeding import derive_seed, permutation


def prompt_batches(ctx: StageContext) -> Iterator[list[Example]]:
    """Yield batches of `training.prompts_per_step` prompts without end; tasks are spread evenly, by `ctx.shares`."""
    in_turn = spread(ctx.shares or dict.fromkeys(ctx.tasks, 1.0))
    items = {task: _endless(ctx, task) for task in ctx.tasks}
    while True:
        yield [next(items[next(in_turn)]) for _ in range(ctx.training.prompts_per_step)]


def spread(shares: Mapping[str, float]) -> Iterator[str]:
    """Yield names so that after n draws each was drawn its share of n times, to within one (smooth weighted round-robin)."""
    total, owed = sum(shares.values()), dict.fromkeys(shares, 0.0)
    while True:
        owed = {name: debt + shares[name] / total for name, debt in owed.items()}
        # Rounding errors must not decide between equal debts, and a share of 0 is never drawn.
        name = max((n for n in owed if shares[n] > 0), key=lambda n: round(owed[n], 9))
        owed[name] -= 1
        yield name


def _endless(ctx: StageContext, task: str) -> Iterator[Example]:
    """Yield one task's items epoch after epoch, each in a new order."""
    examples = [example for example in ctx.examples if example.task == task]
    for epoch in count():
        for i in permutation(len(examples), derive_seed(ctx.seed, "data", task, epoch)):
            yield examples[i]
