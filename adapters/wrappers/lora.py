"""LoRA (arXiv 2106.09685): the wrapped trainer changes only low-rank factors, merged into the weights after the stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, model_validator

from adapters.wrappers.wrapper import Wrapper
from harness.adapter import Capabilities, StageContext, StageResult
from harness.lm.logprobs import StudentForward


class LoRA(Wrapper):
    """Train factors of rank `rank` on every linear layer of the decoder, but not on the output layer."""

    formula: ClassVar[str] = "that of the wrapped trainer"
    paper: ClassVar[str] = "Hu et al. 2021 (arXiv 2106.09685)"
    deviation: ClassVar[str] = "All linear layers of the decoder have factors; the paper adapts only attention."

    rank: int = Field(default=16, gt=0, description="rank of the factors")
    alpha: float = Field(default=32.0, gt=0, description="the factors are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the factors' input in training")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="layers with factors, as peft names them"
    )

    @model_validator(mode="after")
    def _inner_trains_what_it_is_given(self) -> LoRA:
        if self.inner.capabilities.needs_whole_weights:
            raise ValueError(
                f"{self.of.adapter!r} with these options needs the model's own weights, but LoRA trains factors in their "
                "place; leave LoRA out"
            )
        return self

    @property
    def capabilities(self) -> Capabilities:
        """Those of the wrapped adapter, but factors replace the weights."""
        return replace(super().capabilities, replaces_weights=True)

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Add the factors, train them, and merge them into the weights; the model has its plain architecture again."""
        from peft import LoraConfig, get_peft_model  # imports transformers

        trainable = {name: p.requires_grad for name, p in ctx.student.model.named_parameters()}
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)  # pyright: ignore[reportArgumentType]
        adapted: Any = get_peft_model(ctx.student.model, config)
        try:
            return self.inner.train_stage(replace(ctx, student=StudentForward(adapted.base_model.model)))
        finally:
            merged = adapted.merge_and_unload()
            for name, parameter in merged.named_parameters():
                parameter.requires_grad_(trainable[name])
