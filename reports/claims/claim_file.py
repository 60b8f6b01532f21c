"""Read a claims file: its schema, and the metrics that a claim may name.

Every error names the file, the claim and the key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.config.base import NAME, Strict, digest
from harness.config.explain import explain
from harness.config.read_yaml import read_yaml
from harness.errors import ConfigError
from harness.stats.continual import FIGURES, INTRANSIGENCE
from harness.stats.score_matrix import Figure
from reports.claims.grammar import Expression, parse
from reports.data.calibration import CALIBRATION, ProfileFigure
from reports.data.learning_curves import KEPT, CurveFigure
from reports.data.methods import TRAINING, TrainingFigure

FOLDER = Path(str(files("reports"))) / "claims"
# The shipped claims files by the methods that they are about.
SHIPPED = {"aopd": {"opd", "aopd"}, "parts": {"opd", "rkl", "fkl", "aopd", "aopd_02", "aopd_replay"}}
MOST_PRIMARY = 3
RETENTIONS = ("kept", "probe_change", "changed")  # the metrics that can be compared at equal learning
UNITS = {"points": 100.0, "nats": 1.0, "ratio": 1.0}  # a metric's value 1 in a claim's unit: a share of 1 is 100 points


def metrics_of_tasks() -> dict[str, Figure]:
    """Return the figures of a single task, by the names that claims use."""
    return {figure.of_task: figure for figure in FIGURES.values() if figure.of_task}


def claim_metrics() -> dict[str, Figure | TrainingFigure | ProfileFigure | CurveFigure]:
    """Return every metric that a claim may name: of a task, of training, of a run, of two profiles, of learning curves.

    Intransigence is left out: it needs a joint run, whose order differs from that of the methods in a claim.
    """
    runs = {name: figure for name, figure in FIGURES.items() if figure is not INTRANSIGENCE}
    return {**metrics_of_tasks(), **TRAINING, **runs, CALIBRATION.name: CALIBRATION, "kept": KEPT}


def metric_units() -> dict[str, str]:
    """Return the unit that a claim gives for each metric: points, nats or ratio."""
    return {name: "points" if figure.unit == "%" else figure.unit for name, figure in claim_metrics().items()}


class Scope(Strict):
    """Where a claim is judged."""

    start: str = Field(default="each", description="a start's name; `each`; or `pairs` of starts, `one` and `other`")
    stage: Annotated[int, Field(ge=1)] | Literal["branch"] | None = Field(
        default=None,
        description="the last stage that counts; null is the run's last; `branch` is the first stage that the methods train "
        "after stages with an adapter of their own, or after `--from`: all begin it at one checkpoint",
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="one row per task; `first`, `each`, names, or `before`: what was trained before a branch",
    )
    rate: Literal["own", "best"] = Field(
        default="own",
        description="best: each method at the learning rate that the other half of the seeds choose; studies only",
    )

    @property
    def last(self) -> int | None:
        """The last stage that counts, where it has a number."""
        return self.stage if isinstance(self.stage, int) else None


class ClaimEntry(Strict):
    """One claim: a comparison of metrics, the smallest effect that matters, and how and where it is judged."""

    name: str = Field(pattern=NAME)
    text: str = Field(min_length=1, description="{task}, {one} and {other} are filled in")
    expression: str
    unit: Literal["points", "nats", "ratio"]
    smallest_effect: float = Field(ge=0, description="in the unit; 0 where any effect in the direction counts")
    margin: float | None = Field(
        default=None, gt=0, description="in the unit; an effect shown to lie within ± this is called equivalent"
    )
    profile: str = Field(
        default="", description="the evaluation profile of its scores; empty: the file's, else the first"
    )
    at: Literal["end", "equal_learning"] = Field(
        default="end",
        description="equal_learning: retention at the learning that both adapters reach on their learning curves",
    )
    compared: str = ""
    reported: str | dict[str, float] = Field(default="–", description="what the source found, in the unit, by start")
    reported_in: str = ""
    scope: Scope = Scope()

    @cached_property
    def parsed(self) -> Expression:
        """The expression as it is judged."""
        return parse(self.expression)

    @property
    def smallest(self) -> float:
        """The smallest effect of interest in the metrics' own unit."""
        return self.smallest_effect / UNITS[self.unit]

    @property
    def zone(self) -> float:
        """The margin of equivalence in the metrics' own unit; nan without one."""
        return math.nan if self.margin is None else self.margin / UNITS[self.unit]

    @field_validator("expression")
    @classmethod
    def _can_be_read(cls, text: str) -> str:
        parse(text)
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> ClaimEntry:
        named = [metric.name for metric in self.parsed.metrics]
        known, of_task = claim_metrics(), metrics_of_tasks()
        if unknown := [name for name in named if name not in known]:
            raise ValueError(f"there is no metric {unknown[0]!r}; there are {', '.join(known)}")
        if (unit := self.parsed.unit(metric_units())) != self.unit:
            raise ValueError(f"the expression is in {unit} and unit is {self.unit}; give the unit {unit}")
        if not self.scope.tasks and (needing := [name for name in named if name in of_task]):
            raise ValueError(f"metric {needing[0]!r} needs a task; give scope.tasks, for example [first] or [each]")
        if (self.at == "equal_learning" or self.scope.rate == "best") and not self.parsed.is_difference:
            raise ValueError(
                "at: equal_learning and scope.rate: best compare one metric of two adapters; give an expression like "
                "metric(aopd, average_accuracy) > metric(opd, average_accuracy)"
            )
        if self.scope.rate == "best" and (others := [name for name in named if not isinstance(known[name], Figure)]):
            raise ValueError(f"scope.rate: best chooses a rate by a score, and {others[0]} is none; leave rate out")
        if self.at == "equal_learning" and (named[0] not in RETENTIONS or self.scope.rate == "best"):
            raise ValueError(
                f"at: equal_learning compares {', '.join(RETENTIONS[:-1])} or {RETENTIONS[-1]} at each adapter's own learning "
                "rate"
            )
        if self.at != "equal_learning" and ("kept" in named or self.scope.stage == "branch"):
            asked = "metric kept" if "kept" in named else "scope.stage: branch"
            raise ValueError(f"{asked} is read from learning curves; give at: equal_learning too")
        if "before" in self.scope.tasks and self.scope.stage != "branch":
            raise ValueError("scope.tasks: [before] needs scope.stage: branch; give it, or name the tasks")
        starts = {metric.start for metric in self.parsed.metrics}
        if (self.scope.start == "pairs") != bool(starts & {"one", "other"}):
            raise ValueError("start=one and start=other go together with scope.start: pairs; give both or neither")
        if (named_starts := starts - {"", "one", "other"}) and starts - named_starts and self.scope.start == "each":
            raise ValueError(
                f"one metric names the start {min(named_starts)!r} and another names none, which scope.start: each would take "
                "from every start in turn; name a start in each metric, or give scope.start a name"
            )
        return self


class ClaimFile(Strict):
    """A file of claims and where they were made."""

    title: str
    source: str
    note: str = Field(default="", description="how the source's figures relate to what is compared here")
    profile: str = Field(default="", description="the evaluation profile of claims that name none")
    primary: tuple[str, ...] = Field(
        default=(),
        max_length=MOST_PRIMARY,
        description="claims that get a verdict, in the order in which they are tested",
    )
    claims: tuple[ClaimEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> ClaimFile:
        names = [claim.name for claim in self.claims]
        if repeated := _repeated(names):
            raise ValueError(f"two claims are called {repeated!r}; give each its own name")
        if repeated := _repeated(self.primary):
            raise ValueError(f"primary names {repeated!r} twice; name each claim once, in the order of testing")
        if unknown := [name for name in self.primary if name not in names]:
            raise ValueError(f"primary names {unknown[0]!r}, which is not a claim; there are {', '.join(names)}")
        for claim in self.claims:
            if claim.name in self.primary and (len(claim.scope.tasks) > 1 or "each" in claim.scope.tasks):
                raise ValueError(f"primary claim {claim.name} is one test; give one task in scope.tasks, not several")
        return self

    @cached_property
    def digest(self) -> str:
        """The digest of the file's content; comments and the order of keys do not change it."""
        return digest(self.model_dump(mode="json", exclude_defaults=True))

    def profile_of(self, claim: ClaimEntry) -> str:
        """Return the evaluation profile that a claim is judged under; empty for the first one of the runs."""
        return claim.profile or self.profile


def _repeated(names: Sequence[str]) -> str:
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def read_claims(name: str | Path) -> ClaimFile:
    """Return a claims file by its path, or a shipped one by its name; raises `ConfigError` for a missing or invalid file."""
    path = FOLDER / f"{name}.yaml" if (FOLDER / f"{name}.yaml").is_file() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ConfigError(f"there is no claims file {name}; expected a YAML file, or one of {shipped}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected the keys title, source and claims")
    try:
        return ClaimFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_claim(content, error)}{_explained(error)}") from error


def shipped_claims(adapters: Set[str]) -> list[ClaimFile]:
    """Return the shipped claims files whose methods are all among some adapters."""
    return [read_claims(name) for name, needed in SHIPPED.items() if needed <= adapters]


def _claim(content: dict[str, Any], error: ValidationError) -> str:
    """Name the claim that holds the first error; empty outside of claims."""
    place = error.errors()[0]["loc"]
    listed = content.get("claims")
    if len(place) < 2 or not isinstance(place[1], int) or not isinstance(listed, list):
        return ""
    entry = listed[place[1]]
    return f"claim {entry['name']}: " if isinstance(entry, dict) and isinstance(entry.get("name"), str) else ""


def _explained(error: ValidationError) -> str:
    """Explain the first error; the text of a whole claim is not repeated."""
    first = error.errors()[0]
    if not isinstance(first["input"], dict) or first["type"] != "value_error":
        return explain(error, ClaimFile)
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
