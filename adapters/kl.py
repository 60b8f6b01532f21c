"""Forward and reverse KL on the student's own responses: `fkl` covers all modes of the teacher, `rkl` seeks one of them.

Both run over the whole vocabulary (arXiv 2306.13649, section 3); the forward KL can also run over the teacher's top K. The
reverse KL has no top-K form here: restricted to the teacher's top K, its minimum moves the student's mass out of the top K.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from adapters.gkd import FullVocabulary
from adapters.loop.divergences import Tail, top_k_forward_kl
from adapters.loop.tokens import TokenLosses, Tokens
from adapters.loop.training_loop import LoopAdapter, Objective
from harness.adapter import Needs, Requirements
from harness.lm.logprobs import TeacherRequest


class ReverseKL(FullVocabulary):
    """KL(q || p) at every position of the student's response."""

    formula: ClassVar[str] = "KL(q || p)_t over the vocabulary, y ~ q"
    paper: ClassVar[str] = "Gu et al. 2024 (arXiv 2306.08543) and Agarwal et al. 2024 (arXiv 2306.13649)"
    deviation: ClassVar[str] = "Each position's divergence alone: no gradient through the sampled prefix."

    @property
    def objective(self) -> Objective | None:
        """The reverse KL."""
        return "reverse_kl"

    @property
    def beta_of_divergence(self) -> float | None:
        """1, the reverse KL."""
        return 1.0


class ForwardKL(LoopAdapter):
    """KL(p || q) on the teacher's top K, or over the whole vocabulary where `top_k` is null."""

    formula: ClassVar[str] = (
        "sum over the teacher's top K of p (log p - log q), or KL(p || q)_t over the vocabulary, y ~ q"
    )
    paper: ClassVar[str] = "Agarwal et al. 2024 (arXiv 2306.13649)"
    deviation: ClassVar[str] = "The paper uses the whole vocabulary (top_k: null)."
    teacher_needs: ClassVar[Needs] = "top_k"
    depends_on_draw: ClassVar[bool] = False

    top_k: int | None = Field(
        default=32, gt=0, description="null is the whole vocabulary, which a teacher server cannot return"
    )
    tail: Tail = Field(default="none", description="`bucket` adds a term for the mass outside the top K")

    @model_validator(mode="after")
    def _a_tail_needs_a_top_k(self) -> ForwardKL:
        if self.top_k is None and self.tail != "none":
            raise ValueError(
                f"tail: {self.tail} is about the mass outside a top K, but top_k is null, so nothing is outside; leave tail "
                "out, or set top_k"
            )
        return self

    @property
    def requirements(self) -> Requirements:
        """The teacher's top K, or its whole distribution."""
        return Requirements("top_k" if self.top_k else "full", top_k=self.top_k or 0)

    @property
    def objective(self) -> Objective | None:
        """The forward KL; exact where the top K is the whole vocabulary."""
        return "forward_kl"

    @property
    def teacher_request(self) -> TeacherRequest:
        """The teacher's top K, with the mass outside for `tail: bucket`; or the whole vocabulary."""
        return TeacherRequest(top_k=self.top_k or 0, vocabulary=self.top_k is None, rest=self.tail == "bucket")

    @property
    def beta_of_divergence(self) -> float | None:
        """0, the forward KL."""
        return 0.0

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the forward KL at each token, (N,)."""
        if tokens.divergence is not None:
            return TokenLosses(tokens.divergence)
        return TokenLosses(top_k_forward_kl(tokens, self.tail))
