"""Sequence-level distillation (arXiv 1606.07947): supervised fine-tuning on the teacher's own samples."""

from __future__ import annotations

from typing import ClassVar

from adapters.loop import Source
from adapters.sft import SFT
from harness.teachers.base import Needs


class SeqKD(SFT):
    """-log q(y), y sampled from the teacher."""

    teacher_needs: ClassVar[Needs] = "generate"

    def source(self, seed: int) -> Source:
        """Return the teacher, for every step."""
        return "teacher"
