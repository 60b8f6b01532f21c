"""Sequence-level distillation (arXiv 1606.07947): supervised fine-tuning on the teacher's own samples."""

from __future__ import annotations

from typing import ClassVar

from adapters.loop.loop import Objective
from adapters.sft import SFT
from harness.adapter import Source
from harness.teachers.base import Needs


class SeqKD(SFT):
    """-log q(y), y sampled from the teacher."""

    teacher_needs: ClassVar[Needs] = "generate"

    @property
    def objective(self) -> Objective | None:
        """The forward KL, in expectation over the teacher's samples."""
        return "forward_kl"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The teacher alone."""
        return ("teacher",)
