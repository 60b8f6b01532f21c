"""The budget of one stage and its optimiser, with the paper's settings as defaults."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.config.base import Strict, is_mapping, merge
from harness.errors import ConfigError

Precision = Literal["float32", "autocast", "bfloat16_master"]


class Optimizer(Strict):
    """AdamW; the defaults are those of AOPD's released scripts: constant lr 1e-5, weight decay 0.01, clipping at 1.0."""

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
    epochs: float | None = Field(
        default=None, gt=0, description="instead of steps: how often each training item is used as a prompt"
    )
    prompts_per_step: int = Field(default=512, gt=0)
    num_generations: int = Field(
        default=1, gt=0, description="rollouts of each prompt; a reference answer is used once"
    )
    max_new_tokens: int = Field(default=2048, gt=0)
    temperature: float = Field(
        default=1.0, gt=0, description="of the rollouts, and of the log-probabilities of student and teacher"
    )
    generation_batch: int = Field(
        default=64, gt=0, description="prompts decoded together; another number rounds differently, so draws may differ"
    )
    micro_batch: int | None = Field(
        default=None, gt=0, description="sequences in one forward pass; null takes the whole batch"
    )
    autocast: Literal["bfloat16"] | None = Field(
        default=None,
        description="precision of the student's passes and of a local teacher's forward pass; in a suite file `auto` is "
        "bfloat16 where the machine has instructions for it, else null",
    )
    tokens_per_batch: int | None = Field(
        default=None,
        gt=0,
        description="positions in one forward pass, padding included; null sets no limit. A longer sequence gets its own pass",
    )
    packed: bool = Field(
        default=True,
        description="with `tokens_per_batch`: the sequences of a batch in one row without padding, if the model supports it",
    )
    precision: Precision = Field(
        default="float32",
        description="`float32`; `autocast`, float32 weights and bfloat16 passes; `bfloat16_master`, bfloat16 weights with "
        "float32 master weights in the optimiser; takes precedence over `autocast`",
    )
    tf32: bool = Field(default=False, description="float32 matrix products of a GPU in TF32, with 10 bits of mantissa")
    activation_checkpointing: bool = Field(
        default=False, description="keep only the inputs of each layer, and compute the rest again in the backward pass"
    )
    staleness: Literal[0, 1] = Field(
        default=0,
        description="1 draws the rollouts of a step while the step before it trains, with the weights from before its updates",
    )
    train_items: int | None = Field(default=None, gt=0, description="first training items used; null takes all")
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="before")
    @classmethod
    def _match_autocast(cls, data: Any) -> Any:
        """Make `precision` and the older key `autocast` agree; if both are given, `precision` decides."""
        if not is_mapping(data):
            return data
        if data.get("precision") is None:
            return {**data, "precision": "float32" if data.get("autocast") is None else "autocast"}
        return {**data, "autocast": "bfloat16" if data["precision"] == "autocast" else None}

    @model_validator(mode="after")
    def _refuse_two_budgets(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(
                f"found steps {self.steps} and epochs {self.epochs:g}; a stage has one budget, give one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _write_one_budget(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the unused budget, and keys added later at their defaults, so that suites without them keep their hash."""
        dumped: dict[str, Any] = dump(self)
        unused = {"epochs" if self.epochs is None else "steps"}
        unused |= {key for key, default in LATER.items() if dumped.get(key) == default}
        if dumped.get("precision") != "bfloat16_master":  # `autocast` implies it
            unused.add("precision")
        return {key: value for key, value in dumped.items() if key not in unused}

    def for_items(self, items: int) -> Training:
        """Return the budget in steps for a stage of `items` training items: ceil(epochs * items / prompts_per_step)."""
        if self.epochs is None:
            return self
        steps = max(1, math.ceil(self.epochs * items / self.prompts_per_step))
        return Training.model_validate({**self.model_dump(exclude={"epochs"}), "steps": steps})

    @property
    def packs(self) -> bool:
        """Whether batches are packed, if the model supports it."""
        return self.packed and self.tokens_per_batch is not None

    @property
    def scoring_autocast(self) -> Literal["bfloat16"] | None:
        """The autocast of models that do not train: a teacher, or the stage's start."""
        return None if self.precision == "float32" else "bfloat16"


# Keys added after the first suites were hashed, with their defaults.
LATER: dict[str, Any] = {
    "tokens_per_batch": None,
    "packed": True,
    "tf32": False,
    "activation_checkpointing": False,
    "staleness": 0,
}


def merge_training(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` applied; a budget in epochs replaces one in steps, and vice versa."""
    replaced = {"steps": "epochs", "epochs": "steps"}
    dropped = {replaced[key] for key in changes if key in replaced and changes[key] is not None} - set(changes)
    return merge({key: value for key, value in base.items() if key not in dropped}, changes)


def training_of_start(starts: Any, own: Any, start: Any, where: str) -> dict[str, Any]:
    """Return a stage's training for one start: its `own`, and what `starts` holds for the start by name.

    So one setting, `student.start`, chooses between a weak and a strong warm-up. `where` is the stage's place in its file.
    Raises `ConfigError` for an unknown start, and for a key that both set.
    """
    if not is_mapping(starts) or not all(is_mapping(each) for each in (*starts.values(), own)):
        raise ConfigError(f"{where}.starts: expected mappings of what differs in `training`, by the start's name")
    if start not in starts:
        raise ConfigError(
            f"{where}.starts has {', '.join(map(str, starts))}, and the student's start is {start!r}; name one of them under "
            "student.start, or student.strength for a model from scratch"
        )
    if twice := sorted(set(starts[start]) & set(own)):
        raise ConfigError(
            f"{where}: training and starts.{start} both set {', '.join(twice)}; leave it to starts.{start}"
        )
    return {**own, **starts[start]}
