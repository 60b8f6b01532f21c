"""How each checkpoint is evaluated: decoding, profiles, and the distance from the start."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.config.base import Name, Strict


class Decoding(Strict):
    """Generation settings that replace the tasks' own; null keeps the task's setting."""

    until: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_gen_toks: int | None = Field(default=None, gt=0)


class Profile(Decoding):
    """One way of answering: what differs from the suite's `decoding`, and how many answers each item gets."""

    n: int = Field(default=1, gt=0, description="answers to each item, drawn in one call and graded one by one")
    pass_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="the k of each pass@k, estimated from the n answers"
    )

    @model_validator(mode="after")
    def _check_n(self) -> Profile:
        if self.pass_at and max(self.pass_at) > self.n:
            raise ValueError(
                f"pass_at asks for pass@{max(self.pass_at)}, but n is {self.n} answers to each item; raise n, or leave out "
                f"pass@{max(self.pass_at)}"
            )
        if self.n > 1 and (self.temperature == 0 or self.do_sample is False):
            raise ValueError(
                f"n is {self.n}, but greedy decoding gives the same answer {self.n} times; set a temperature above 0, or n: 1"
            )
        return self

    def over(self, decoding: Decoding) -> Decoding:
        """Return the suite's decoding with this profile's changes; its temperature also decides `do_sample` if not set."""
        own = self.model_dump(exclude={"n", "pass_at"}, exclude_none=True)
        if self.temperature is not None:
            own = {"do_sample": self.temperature > 0, **own}
        return Decoding.model_validate({**decoding.model_dump(), **own})


class Drift(Strict):
    """How the distance from the start is measured: on the start's sampled answers to the first items of generating tasks."""

    items: int = Field(default=16, gt=0, description="first test items of each generating task")
    max_new_tokens: int = Field(default=256, gt=0, description="longest answer, unless the task's limit is lower")


class Evaluation(Strict):
    """How each checkpoint is evaluated after each stage."""

    limit: int | None = Field(default=None, gt=0, description="first test items of each task; null takes all")
    batch_size: int = Field(default=64, gt=0)
    decoding: Decoding = Decoding()
    profiles: dict[Name, Profile] = Field(
        default={},
        description="ways of answering by name; the first one gives the suite's scores. Without any, `decoding` is used",
    )
    seed: int = Field(default=1234, description="seed of sampled answers, for every profile")

    drift: Drift | None = Field(
        default=Drift(), description="KL to the start and entropy after every stage, for every adapter; null is off"
    )
    every: int | None = Field(
        default=None,
        gt=0,
        description="steps between two points of the learning curve inside a stage, which scores the stage's tasks, the first "
        "stage's and the probes; null is off",
    )
    curve_items: int = Field(default=64, gt=0, description="first test items of each task that are scored at a point")
    curve_profile: Name | None = Field(
        default=None, description="the profile under which a point's answers are drawn; null is the first one"
    )
    curve_answers: int = Field(
        default=1,
        gt=0,
        description="answers to each item at a point, whatever the profile's n; an item's score is their mean",
    )
    noise_floor: int = Field(
        default=0, ge=0, description="further evaluations of the start with different seeds, for profiles that sample"
    )

    teacher: bool = Field(default=True, description="whether the suite's teacher is evaluated too, once for all runs")

    @property
    def all_profiles(self) -> dict[str, Profile]:
        """The profiles by name, in the file's order; a single one called `default` where the suite has none."""
        return self.profiles or {"default": Profile()}

    @property
    def profile_of_curves(self) -> str:
        """The name of the profile under which learning curves are made."""
        return self.curve_profile or next(iter(self.all_profiles))

    @model_validator(mode="after")
    def _check_curve_profile(self) -> Evaluation:
        if self.profile_of_curves not in self.all_profiles:
            raise ValueError(
                f"curve_profile is {self.curve_profile!r}, which is not among the profiles {', '.join(self.all_profiles)}; "
                "name one of them, or leave it out"
            )
        drawn = self.all_profiles[self.profile_of_curves].over(self.decoding)
        if self.curve_answers > 1 and (drawn.temperature == 0 or drawn.do_sample is False):
            raise ValueError(
                f"curve_answers is {self.curve_answers}, but profile {self.profile_of_curves} is greedy and gives the same "
                "answer each time; leave curve_answers out, or set curve_profile to a profile that samples"
            )
        return self

    @model_serializer(mode="wrap")
    def _omit_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys added later at their defaults, so that suites without them keep their hash."""
        dumped: dict[str, Any] = dump(self)
        later: dict[str, Any] = {"profiles": {}, "drift": Drift(), "noise_floor": 0, "every": None, "curve_items": 64}
        later |= {"teacher": True, "curve_profile": None, "curve_answers": 1}
        return {key: value for key, value in dumped.items() if key not in later or getattr(self, key) != later[key]}
