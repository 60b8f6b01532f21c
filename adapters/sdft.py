"""Self-distillation fine-tuning (SDFT, arXiv 2601.19897): the teacher is the model itself, shown the demonstration.

L = E[1/|y| sum_t KL(q(.|x, y_<t) || p(.|x, demonstration, y_<t))], y from the student; the weights of p are an average of the
student's over updates. The effect that the demonstration has in context is distilled into the student's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator

from adapters.gkd import FullVocabulary
from adapters.loop.training_loop import Objective
from harness.adapter import Capabilities, Needs, Requirements, StageContext
from harness.errors import ConfigError
from harness.lm.rollouts import Rollout
from harness.teachers.teacher import Teacher

DEMONSTRATION_PROMPT = "{question}\n\nHere is one good answer:\n{demonstration}\n\nNow answer the question yourself."


class SDFT(FullVocabulary):
    """Reverse KL from the student to itself with the reference answer in its prompt."""

    formula: ClassVar[str] = (
        "KL(q || p)_t over the vocabulary, p the averaged student with the reference answer in its prompt, y ~ q"
    )
    paper: ClassVar[str] = "arXiv 2601.19897"
    deviation: ClassVar[str] = (
        "The reverse KL and the direction and rate of the average are the paper's; the prompt template is not, and the "
        "first tokens are not masked."
    )
    teacher_needs: ClassVar[Needs] = "none"

    ema_rate: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="how far the teacher moves to the student after each update; 0 keeps the stage's start, 1 copies the "
        "student",
    )
    shown: str = Field(
        default=DEMONSTRATION_PROMPT, description="the teacher's user message, from {question} and {demonstration}"
    )

    @field_validator("shown")
    @classmethod
    def _shows_the_demonstration(cls, shown: str) -> str:
        if "{demonstration}" not in shown:
            raise ValueError(
                "the text has no {demonstration}, so the teacher reads no more than the student; put it where the "
                "reference answer should be"
            )
        return shown

    @property
    def requirements(self) -> Requirements:
        """A copy of the stage's start, which is the teacher and follows the student."""
        return Requirements("none", reference=True)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the loop; unless `ema_rate` is 0, it also needs whole weights and moves the reference, its teacher."""
        averages = self.ema_rate > 0
        return replace(super().capabilities, needs_whole_weights=averages, moves_reference=averages)

    @property
    def objective(self) -> Objective | None:
        """The reverse KL from the model that reads the demonstration."""
        return "reverse_kl"

    def scorer(self, ctx: StageContext) -> Teacher | None:
        """Return the averaged student, which is the reference."""
        return ctx.reference

    @property
    def beta_of_divergence(self) -> float | None:
        """1, the reverse KL."""
        return 1.0

    def teacher_prompts(self, ctx: StageContext, rollouts: Sequence[Rollout]) -> list[list[int]] | None:
        """Return prompts that show the item's reference answer.

        Raises `ConfigError` where such a prompt and a response do not fit the model's context.
        """
        prompts = [ctx.with_demonstration(rollout.example, self.shown) for rollout in rollouts]
        longest = max(map(len, prompts)) + ctx.training.max_new_tokens
        context = ctx.student.model.config.get_text_config().max_position_embeddings
        if longest > context:
            raise ConfigError(
                f"a prompt with its demonstration and {ctx.training.max_new_tokens} new tokens takes {longest} tokens, the "
                f"model has {context}; shorten `shown` or lower max_new_tokens"
            )
        return prompts

    @torch.no_grad()
    def after_update(self, ctx: StageContext) -> None:
        """Move the teacher: p <- (1 - rate) p + rate q."""
        if self.ema_rate == 0:
            return
        assert ctx.reference is not None
        moved = dict(ctx.reference.model.named_parameters())
        student = dict(ctx.student.model.named_parameters())
        for name, old in moved.items():
            old.lerp_(student[name].to(old.dtype), self.ema_rate)
