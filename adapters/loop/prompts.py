"""The order in which a stage's prompts are drawn: each task in its share, each task's items epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from harness.adapter import StageContext
from harness.lm.rollouts import Example
from harness.lm.seeding import derive_seed, permutation


def prompt_batches(ctx: StageContext) -> Iterator[list[Example]]:
    """Yield batches of prompts without end, every task in its share of `ctx.shares`, spread evenly."""
    in_turn = spread(ctx.shares or dict.fromkeys(ctx.tasks, 1.0))
    items = {task: _endless(ctx, task) for task in ctx.tasks}
    while True:
        yield [next(items[next(in_turn)]) for _ in range(ctx.training.prompts_per_step)]


def spread(shares: Mapping[str, float]) -> Iterator[str]:
    """Yield names so that after every n draws each has had its share of n, to within one (smooth weighted round-robin)."""
    total, owed = sum(shares.values()), dict.fromkeys(shares, 0.0)
    while True:
        owed = {name: debt + shares[name] / total for name, debt in owed.items()}
        # Rounding must not decide between equal debts, nor may a share of nothing ever be drawn.
        name = max((n for n in owed if shares[n] > 0), key=lambda n: round(owed[n], 9))
        owed[name] -= 1
        yield name


def _endless(ctx: StageContext, task: str) -> Iterator[Example]:
    """Yield one task's items epoch after epoch, each in a new order."""
    examples = [example for example in ctx.examples if example.task == task]
    for epoch in count():
        for i in permutation(len(examples), derive_seed(ctx.seed, "data", task, epoch)):
            yield examples[i]
