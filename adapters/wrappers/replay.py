"""Experience replay: a share of the prompts comes from tasks of earlier stages (measured in arXiv 2310.06762)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field, model_validator

from adapters.wrappers.wrapper import Wrapper
from harness.adapter import StageContext


class Replay(Wrapper):
    """Draw `share` of the prompts from all earlier tasks, in equal parts; the stage's teacher scores them.

    The first stage has nothing to replay. The number of prompts stays the same, so the stage's own task gets fewer.
    """

    formula: ClassVar[str] = "that of the wrapped trainer, on prompts of earlier stages too"
    paper: ClassVar[str] = "TRACE (arXiv 2310.06762)"
    deviation: ClassVar[str] = (
        "Prompts are replayed, and answered as in the wrapped trainer; the paper replays references."
    )

    share: float = Field(default=0.2, gt=0, lt=1, description="share of the prompts that are replayed")

    @model_validator(mode="after")
    def _replays_once(self) -> Replay:
        inner = self.inner
        while isinstance(inner, Wrapper):
            if isinstance(inner, Replay):
                raise ValueError("the wrapped trainer replays already; name replay once, with the whole share")
            inner = inner.inner
        return self

    def changed(self, ctx: StageContext) -> StageContext:
        """Return the stage with the earlier tasks added to its own."""
        if not ctx.past_tasks:
            return ctx
        own = ctx.shares or dict.fromkeys(ctx.tasks, 1.0)
        shares = {task: (1 - self.share) * share / sum(own.values()) for task, share in own.items()}
        shares |= {task: self.share / len(ctx.past_tasks) for task in ctx.past_tasks}
        return replace(ctx, tasks={**ctx.tasks, **ctx.past_tasks}, examples=[*ctx.examples, *ctx.past], shares=shares)
