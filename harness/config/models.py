"""What a suite says about a model: a pretrained checkpoint, or a recipe that builds a small one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.config.base import Name, Strict, is_mapping


class Chat(Strict):
    """How a conversation becomes text and where an answer ends; the same for training, teacher and evaluation."""

    template: str | None = Field(default=None, description="`chatml`, or a Jinja file; null keeps the tokenizer's own")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="tokens that end an answer; empty takes the tokenizer's eos token"
    )
    enable_thinking: bool | None = Field(default=None, description="passed to the template; null passes nothing")


class Architecture(Strict):
    """Shape of a Qwen3 model that is built from scratch."""

    hidden_size: int = Field(default=128, gt=0)
    intermediate_size: int = Field(default=384, gt=0)
    layers: int = Field(default=3, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=32, gt=0)
    context: int = Field(default=256, gt=0, description="longest sequence in tokens, prompt and answer together")
    tie_embeddings: bool = True


class TokenizerRecipe(Strict):
    """A byte-level BPE trained on the rendered training text of some tasks; digits stay single."""

    vocab_size: int = Field(default=384, gt=260)
    spaces: Literal["own", "leading"] = Field(
        default="leading",
        description="`own` makes a space its own token, so that a copied word keeps its ids; `leading` needs fewer tokens",
    )
    tasks: tuple[str, ...] = Field(min_length=1)
    items_per_task: int = Field(default=2000, gt=0)


class Strength(Strict):
    """How far a warm-up goes: optimiser steps, and how many training items of each task it sees (default: all)."""

    steps: int = Field(gt=0)
    items: dict[str, int] = Field(default={})


class Warmup(Strict):
    """Supervised training that takes random weights to a named strength."""

    mixture: dict[str, float] = Field(description="task to its share of each batch", min_length=1)
    strengths: dict[str, Strength] = Field(min_length=1)
    batch_size: int = Field(default=64, gt=0)
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    autocast: Literal["bfloat16"] | None = Field(
        default=None, description="precision of the passes, as in `training`; `auto` too"
    )

    @model_validator(mode="after")
    def _check_items(self) -> Warmup:
        for name, strength in self.strengths.items():
            if unknown := sorted(set(strength.items) - set(self.mixture)):
                raise ValueError(
                    f"strength {name!r} limits items of {', '.join(unknown)}, which the mixture lacks; add them to "
                    "the mixture, or leave them out here"
                )
        return self


class Start(Strict):
    """One of several checkpoints that a pretrained student may start from."""

    path: str
    revision: str | None = None


class Pretrained(Strict):
    """A causal language model by folder or hub id, base models included.

    With `starts`, several checkpoints by name, `start` chooses one, and `path` and `revision` are taken from it.
    """

    kind: Literal["pretrained"]
    path: str = Field(description="folder or hub id; left out where `starts` gives it")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chat: Chat = Chat()
    starts: dict[Name, Start] = Field(default={}, description="checkpoints by name, such as weak and strong")
    start: str = Field(default="", description="the name of the start; one of `starts`, if there are any")

    @model_validator(mode="before")
    @classmethod
    def _take_start(cls, raw: Any) -> Any:
        """Fill in the path and revision of the chosen start."""
        starts: Any = raw.get("starts") if is_mapping(raw) else None
        if not is_mapping(raw) or not is_mapping(starts) or not starts:
            return raw
        chosen: Any = starts.get(str(raw.get("start")))
        if chosen is None:
            raise ValueError(f"start is {raw.get('start')!r}, expected one of starts: {', '.join(map(str, starts))}")
        if "path" in raw or "revision" in raw:
            raise ValueError("found path or revision next to starts, which give both; leave out path and revision")
        given = chosen if is_mapping(chosen) else {}
        return {**raw, "path": given.get("path"), "revision": given.get("revision")}

    @model_serializer(mode="wrap")
    def _write_chosen_start(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write only the chosen start, so that adding another one does not change the hash of its runs."""
        dumped: dict[str, Any] = dump(self)
        unused = {"starts"} if self.start else {"starts", "start"}
        return {key: value for key, value in dumped.items() if key not in unused}

    @property
    def start_name(self) -> str:
        """The start's name in reports; empty if it has none."""
        return self.start


class Scratch(Strict):
    """A small model that the harness builds; architecture, tokenizer, warm-up and seed determine it."""

    kind: Literal["scratch"]
    architecture: Architecture = Architecture()
    tokenizer: TokenizerRecipe
    warmup: Warmup
    strength: str
    seed: int | None = Field(default=None, description="null takes the run's seed, so that each seed has its own start")
    dtype: Literal["float32"] = "float32"
    chat: Chat = Chat(template="chatml")

    @model_validator(mode="after")
    def _check_strength(self) -> Scratch:
        if self.strength not in self.warmup.strengths:
            raise ValueError(
                f"strength {self.strength!r} is not one of {', '.join(self.warmup.strengths)}; name one, or add it to "
                "warmup.strengths"
            )
        return self

    @property
    def start_name(self) -> str:
        """The start's name in reports: the strength."""
        return self.strength


Model = Annotated[Pretrained | Scratch, Field(discriminator="kind")]
