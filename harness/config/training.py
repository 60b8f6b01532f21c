"""The budget of one stage and its optimiser, with the paper's settings as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Strict


class Optimizer(Strict):
    """AdamW with the official scripts' settings (METHOD: lr 1e-5 constant, weight decay 0.01, clip 1.0)."""

    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class Training(Strict):
    """The budget of one stage, the same for every adapter."""

    steps: int = Field(default=100, gt=0, description="rollout batches; an adapter may take several updates on each")
    prompts_per_step: int = Field(default=512, gt=0)
    num_generations: int = Field(
        default=1, gt=0, description="rollouts of each prompt; references from the data come once"
    )
    max_new_tokens: int = Field(default=2048, gt=0)
    temperature: float = Field(default=1.0, gt=0, description="of the rollouts and of both sides' log-probabilities")
    generation_batch: int = Field(default=64, gt=0, description="prompts decoded together; part of what a seed draws")
    micro_batch: int | None = Field(
        default=None, gt=0, description="sequences in one forward; null takes the whole batch"
    )
    autocast: Literal["bfloat16"] | None = Field(
        default=None, description="of forward and backward passes of the student, and of a local teacher's forward"
    )
    train_items: int | None = Field(default=None, gt=0, description="first training items used; null takes all")
    optimizer: Optimizer = Optimizer()
