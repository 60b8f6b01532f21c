"""How each checkpoint is evaluated: decoding, profiles, and the distance from the start."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.config.base import Name, Strict


class Decoding(Strict):
    """Generation settings that replace the tasks' own; null keeps what a task says."""

    until: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_gen_toks: int | None = Field(default=None, gt=0)


class Profile(Decoding):
    """One way of answering: what differs from the suite's `decoding`, and how many answers each item gets."""

    n: int = Field(default=1, gt=0, description="answers of each item, drawn in one call and graded one by one")
    pass_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="the k of each pass@k, estimated from the n answers"
    )

    @model_validator(mode="after")
    def _n_answers_can_tell(self) -> Profile:
        if self.pass_at and max(self.pass_at) > self.n:
            raise ValueError(
                f"pass_at asks for pass@{max(self.pass_at)} and n gives {self.n} answers of each item; raise n or drop it"
            )
        if self.n > 1 and (self.temperature == 0 or self.do_sample is False):
            raise ValueError(
                f"n is {self.n} and decoding is greedy, which gives one answer {self.n} times; sample, or n: 1"
            )
        return self

    def over(self, decoding: Decoding) -> Decoding:
        """The suite's decoding with this profile's changes; a temperature alone says whether to sample, too."""
        own = self.model_dump(exclude={"n", "pass_at"}, exclude_none=True)
        if self.temperature is not None:
            own = {"do_sample": self.temperature > 0, **own}
        return Decoding.model_validate({**decoding.model_dump(), **own})


class Drift(Strict):
    """How the distance from the start is measured: on the start's sampled answers to each generating task's first items."""

    items: int = Field(default=16, gt=0, description="first test items of each generating task")
    max_new_tokens: int = Field(default=256, gt=0, description="of an answer, where a task allows no less")


class Evaluation(Strict):
    """How each checkpoint is evaluated after each stage."""

    limit: int | None = Field(default=None, gt=0, description="first test items of each task; null takes all")
    batch_size: int = Field(default=64, gt=0)
    decoding: Decoding = Decoding()
    profiles: dict[Name, Profile] = Field(
        default={},
        description="ways of answering by name, the first one's scores are the suite's; none is `decoding` alone",
    )
    seed: int = Field(default=1234, description="of the engine's draws, whatever the profile")

    drift: Drift | None = Field(
        default=Drift(), description="KL to the start and entropy after every stage, whatever the adapter; null is off"
    )
    every: int | None = Field(
        default=None,
        gt=0,
        description="steps between two points of the learning curve inside a stage: its own tasks, the first stage's and the "
        "probes; null is off",
    )
    curve_items: int = Field(default=64, gt=0, description="first test items of each task that a point is made of")
    noise_floor: int = Field(
        default=0, ge=0, description="further evaluations of the start with other seeds, under profiles that sample"
    )

    teacher: bool = Field(
        default=True, description="whether the suite's teacher answers the test items, once for all runs"
    )

    @property
    def all_profiles(self) -> dict[str, Profile]:
        """The profiles by name, in the file's order; one called `default` where the suite names none."""
        return self.profiles or {"default": Profile()}

    @model_serializer(mode="wrap")
    def _omit_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys at their defaults, so that suites which do not name them keep the hash that they had."""
        dumped: dict[str, Any] = dump(self)
        later: dict[str, Any] = {"profiles": {}, "drift": Drift(), "noise_floor": 0, "every": None, "curve_items": 64}
        later |= {"teacher": True}
        return {key: value for key, value in dumped.items() if key not in later or getattr(self, key) != later[key]}
