"""What a study file may contain: a suite, the methods compared, and the factors varied one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from harness.config.base import LOOKS_MEAN, Looks, Name, Strict, refuse_early_end
from harness.config.explain import explain
from harness.config.read_yaml import read_yaml
from harness.errors import ConfigError


def _refuse_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list with a repeated value; the values need not be hashable."""
    if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{list(values)} names {repeated[0]!r} twice; give each once")
    return values


Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_refuse_repeats)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_refuse_repeats)]
Reference = str | dict[str, str]
STUDY_FOLDER = Path(str(files("tasks"))) / "studies"


class Factor(Strict):
    """One thing that is varied while all else stays as in the suite."""

    title: str
    key: str | None = Field(
        default=None, description="suite key whose value varies; null varies entries or orders only"
    )
    values: tuple[Any, ...] = ()
    fixed: dict[str, Any] = Field(default={}, description="suite keys that are set in every run of this factor")
    entries: Names | None = Field(default=None, description="adapters; null takes the study's")
    orders: Names = ("default",)
    seeds: Seeds | None = Field(default=None, description="null takes the study's")
    against: Reference | None = Field(
        default=None,
        description="what entries are compared with: one for all, or pairs `entry: reference`; null: the study's",
    )
    note: str = Field(default="", description="what a reader of the page should know about this factor and its values")

    @property
    def of_entries(self) -> bool:
        """Whether only entries are varied, and so compared with each other."""
        return self.key is None and len(self.orders) == 1

    @model_validator(mode="after")
    def _check_key_and_values(self) -> Factor:
        if (self.key is None) != (not self.values):
            raise ValueError("key and values go together; give both, or neither to vary entries or orders alone")
        _refuse_repeats(self.values)
        if self.against is not None and not self.of_entries:
            raise ValueError(
                "`against` is for a factor that varies entries alone; leave it out where there are a key or orders"
            )
        return self


class Study(Strict):
    """A suite, the methods compared, and the factors varied one at a time."""

    name: Name
    title: str
    suite: str
    entries: Names
    seeds: Seeds
    looks: Looks | None = Field(default=None, description=LOOKS_MEAN)
    against: Reference | None = Field(
        default=None,
        description="what entries are compared with: one for all, or pairs `entry: reference`; null: the first",
    )
    claims: tuple[str, ...] = Field(
        default=(),
        description="claims files that the page judges: names of shipped ones, or paths from this file's folder",
    )
    minutes_per_run: float = Field(gt=0, description="on one processor; the estimate until a run is finished")
    factors: dict[Name, Factor] = Field(min_length=1)

    @property
    def planned_looks(self) -> tuple[int, ...]:
        """The numbers of seeds at which the study's claims are judged."""
        return self.looks or (len(self.seeds),)

    def reference(self, entry: str, factor: Factor | None = None) -> str | None:
        """Return the entry that `entry` is compared with, in a factor or in the whole study; None if there is none."""
        against = self.against or self.entries[0] if factor is None or factor.against is None else factor.against
        reference = against.get(entry) if isinstance(against, dict) else against
        return None if reference == entry else reference

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """The study's entries that have a reference, each with it: (entry, reference)."""
        return self.contrasts_of(None)

    def contrasts_of(self, factor: Factor | None) -> list[tuple[str, str]]:
        """Return a factor's entries that have a reference, each with it; for None, those of the whole study."""
        entries = (factor.entries if factor else None) or self.entries
        return [(entry, reference) for entry in entries if (reference := self.reference(entry, factor))]

    @model_validator(mode="after")
    def _check_references(self) -> Study:
        refuse_early_end(self.looks, len(self.seeds))
        _check_names("against", self.against, self.entries)
        for name, factor in self.factors.items():
            _check_names(f"{name}.against", factor.against, factor.entries or self.entries)
        return self


def _check_names(key: str, against: Reference | None, entries: Sequence[str]) -> None:
    """Refuse a reference, or an entry with a reference, that is not among the entries."""
    named = [] if against is None else [against] if isinstance(against, str) else [*against, *against.values()]
    if unknown := [entry for entry in named if entry not in entries]:
        raise ValueError(
            f"{key} names {unknown[0]!r}, which is not among the entries {', '.join(entries)}; add it there"
        )


def load_study(name: str) -> Study:
    """Read a study by name (`tiny`) or path; raises `ConfigError` with key, what was found and what was expected."""
    path = Path(name) if Path(name).suffix in {".yaml", ".yml"} else STUDY_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in STUDY_FOLDER.glob("*.yaml")))
        raise ConfigError(f"there is no study {name!r}; known are {known}, or give a path that ends in .yaml")
    try:
        study = Study.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Study)}") from error
    near = [path.parent / claims for claims in study.claims]
    found = [str(file) if file.is_file() else name for file, name in zip(near, study.claims, strict=True)]
    return study.model_copy(update={"claims": tuple(found)})
