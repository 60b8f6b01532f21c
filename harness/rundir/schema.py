"""The run directory's schema: its version, and the manifest, which says what a run is and what produced it.

`SCHEMA` is the version of the whole directory; the manifest holds it. `upgrade` reads manifests of earlier versions. The other
files are records of `harness.rundir.records`. The pipeline writes all of them; reports and resumed runs read them. Every
description is a row of docs/run-directory.md, which `python -m harness.rundir.schema_page` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from harness.config.base import PathPart, Record, digest, is_mapping
from harness.config.run_spec import identity_of
from harness.errors import RunError
from harness.rundir.records.overlap_record import Overlap

SCHEMA = 3
Source = Literal["student", "data", "teacher"]  # who wrote the answers that an adapter trains on
SOURCES: tuple[Source, ...] = ("student", "data", "teacher")
CONTROL = "none"  # the kind of the adapter that updates nothing


class Git(Record):
    """The git checkout that the code ran from; all fields are null for an installed package."""

    commit: str | None = None
    dirty: bool | None = None
    diff: str | None = None
    diff_left_out: str | None = None


class Session(Record):
    """One process that worked on a run: its code, packages and hardware, its time, and its memory."""

    git: Git = Field(default=Git(), description="the commit of the code, whether files differed from it, and the diff")
    packages: dict[str, str] = Field(
        default={}, description="versions of Python and of the packages that affect numbers"
    )
    hardware: dict[str, Any] = Field(default={}, description="processor, number of cores, memory in GiB, GPUs")
    command: str = Field(default="", description="the command line, quoted for a shell")
    created: str = Field(default="", description="when the process started, UTC, ISO 8601")
    seconds: dict[str, float] | None = Field(
        default=None, description="wall-clock seconds by phase: models, train, evaluate, and total"
    )
    settings: dict[str, Any] = Field(
        default={},
        description="settings that may differ between sessions: device, threads, folders, sizes of batches and caches",
    )
    peak_memory: dict[str, Any] = Field(
        default={},
        description="highest bytes by phase. `of` says of what: `gpu`, this process's tensors on a GPU, or `process`, its "
        "resident memory where it uses no GPU. Child processes, such as vLLM's or an external command's, are not counted",
    )


class StageRecord(Record):
    """One planned stage."""

    name: PathPart = Field(description="the task's name, or the stage's where it trains several tasks")
    trains: tuple[PathPart, ...] = Field(description="the tasks that it trains")
    steps: int = Field(default=0, ge=0, description="its training steps; 0 in manifests of early versions")
    adapter: str = Field(
        default="", description="the adapter that trains it for all methods; empty where the method under test does"
    )


class Noise(Record):
    """The repeated evaluations of the start, each with another seed of the engine."""

    repeats: int = Field(gt=0, description="number of repeated evaluations")
    cells: tuple[str, ...] = Field(description="the cells that are evaluated again")


class RegisteredClaims(Record):
    """Claims that were registered before a run started: a line of claims.jsonl, copied into the run's manifest."""

    title: str = Field(description="the title of the claims file")
    claims: str = Field(description="digest of the file's content")
    suite: str = Field(description="the suite's name")
    configurations: dict[str, str] = Field(
        description="by adapter and order, the digest of a run's configuration, without its seed"
    )
    when: str = Field(description="when they were registered, UTC, ISO 8601")
    seeds: tuple[int, ...] = Field(
        default=(), description="the planned seeds; empty in registrations of early versions"
    )
    looks: tuple[int, ...] = Field(
        default=(),
        description="the numbers of seeds at which they will be judged; empty in registrations of early versions",
    )


class Manifest(Record):
    """What a run is and what produced it: manifest.json."""

    version: Literal[3] = Field(
        validation_alias="schema", serialization_alias="schema", description="version of the run directory"
    )
    suite: str = Field(description="the suite's name")
    adapter: str = Field(description="the entry's name in the suite")
    kind: str = Field(description="the adapter's registered name; `none` is the control, which updates nothing")
    trains_on: tuple[Source, ...] = Field(
        description="who wrote the answers that it trains on: `student`, `data`, `teacher`; empty for a control"
    )
    adapter_config: dict[str, Any] = Field(default={}, description="the adapter's options, defaults filled in")
    order: str = Field(description="the order of the stages; `default` is the suite's own")
    seed: int = Field(description="the run's seed")
    vouched: bool = Field(default=False, description="whether the run's files carry checksums; false in early versions")
    start: str = Field(
        default="", description="name of the student's start, such as its strength; empty where it has none"
    )
    start_checkpoint: str | None = Field(default=None, description="folder of the student before any stage")
    stages: tuple[StageRecord, ...] = Field(description="the planned stages, in order")
    probes: tuple[PathPart, ...] = Field(
        description="tasks that are evaluated and that no stage of this run trains: the suite's probes and, after `--from`, "
        "tasks that another run trained before the start"
    )
    profiles: dict[PathPart, tuple[PathPart, ...]] = Field(
        default={},
        description="the tasks of each evaluation profile, the suite's first one first; empty without profiles",
    )
    noise: Noise | None = Field(
        default=None, description="repeated evaluations of the start, where the suite asks for any"
    )
    config: dict[str, Any] = Field(default={}, description="the resolved suite of this run")
    config_hash: str = Field(
        default="",
        description="digest of the part of `config` that decides numbers: a run continues only under the same one",
    )
    weights: dict[str, str] = Field(
        default={}, description="digests of the start's, the teacher's and each stage's weights"
    )
    inputs: dict[str, str] = Field(
        default={},
        description="digests of the start's configuration and tokenizer files, of a chat template, of each stage's rendered "
        "training items, and of each task's settings and grader",
    )
    overlap: Overlap | None = Field(default=None, description="overlap of training prompts with test sets")
    registered: tuple[RegisteredClaims, ...] = Field(
        default=(), description="the claims that were registered for the suite before the run started"
    )
    looks: tuple[int, ...] = Field(
        default=(),
        description="the numbers of seeds at which claims were to be judged when the run started; empty in early versions",
    )
    sessions: tuple[Session, ...] = Field(default=(), description="the processes that worked on the run, in order")
    finished: str | None = Field(default=None, description="when the run ended, UTC, ISO 8601; null until then")

    @property
    def made(self) -> Session:
        """The first session: what the run was started with."""
        return self.sessions[0] if self.sessions else Session()

    @property
    def control(self) -> bool:
        """Whether the run trains nothing."""
        return self.kind == CONTROL

    @property
    def on_policy(self) -> bool:
        """Whether it trains on the student's own answers alone: only then is what a step log says of answers theirs."""
        return set(self.trains_on) == {"student"}

    @property
    def profile_names(self) -> tuple[str, ...]:
        """The evaluation profiles, the suite's first one first; `default` alone where the suite names none."""
        return tuple(self.profiles) or ("default",)

    @property
    def curve_profile(self) -> str:
        """The evaluation profile of the learning curves."""
        evaluation: Any = self.config.get("evaluation") or {}
        return evaluation.get("curve_profile") or self.profile_names[0]

    @property
    def fixed_stages(self) -> int:
        """How many stages at the beginning have an adapter of their own, so that all methods of a seed train them alike."""
        return next((place for place, stage in enumerate(self.stages) if not stage.adapter), len(self.stages))

    @property
    def fixed_tasks(self) -> tuple[str, ...]:
        """The tasks of all stages with an adapter of their own."""
        return tuple(task for stage in self.stages if stage.adapter for task in stage.trains)

    @property
    def trained_before(self) -> tuple[str, ...]:
        """The tasks that were trained before the method under test trained its first stage: by another run, or fixed."""
        fixed = (task for stage in self.stages[: self.fixed_stages] for task in stage.trains)
        return (*self.trained_before_start, *fixed)

    @property
    def trained_before_start(self) -> tuple[str, ...]:
        """The tasks that other runs trained before this run's start, where it starts from another run's stage."""
        origin: Any = self.config.get("origin") or {}
        return tuple(str(each["task"]) for each in origin.get("trained", ()))

    @property
    def never_trained(self) -> tuple[str, ...]:
        """The tasks that no stage trains, of this run or before its start: the probes of figures, claims and reports."""
        before = self.trained_before_start
        return tuple(task for task in self.probes if task not in before)


def upgrade(raw: Any, place: str) -> Any:
    """Return a manifest's fields in the form of this version; raises `RunError` for an unknown version.

    `raw` is the JSON value, `place` the file's name for messages.
    """
    if not is_mapping(raw):
        raise RunError(f"{place} holds {type(raw).__name__}, expected the manifest of a run; restore it from a copy")
    version = raw.get("schema")
    if version == SCHEMA:
        return raw
    if version != 2:
        raise RunError(
            f"{place} has schema {version!r}, expected {SCHEMA} or 2; read it with the version that wrote it"
        )
    sessions: Any = raw.get("sessions") or [{}]
    made = {name: raw[name] for name in ("git", "packages", "hardware", "command", "created") if name in raw}
    config: Any = raw.get("config") or {}
    entry = config.get("adapter")
    kind = str((entry.get("adapter") if is_mapping(entry) else None) or raw.get("adapter"))
    return {
        **{name: value for name, value in raw.items() if name not in made},
        "schema": SCHEMA,
        "kind": kind,
        "trains_on": _trained_on(kind, raw.get("adapter_config") or {}),
        "start": raw.get("start") or "",
        "config_hash": digest(identity_of(config)),
        "sessions": [{**made, **sessions[0]}, *sessions[1:]],
    }


def _trained_on(kind: str, options: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return what a run of schema 2 trained on. That version did not record it; the adapters of its time are known."""
    if isinstance(inner := options.get("of"), str):
        return _trained_on(inner, {})
    if is_mapping(inner):
        return _trained_on(str(inner.get("adapter")), inner.get("options") or {})
    if kind == "gkd":
        share = float(options.get("lmbda", 0.5))
        return ("student",) if share == 1 else ("student", "data") if share else ("data",)
    known: dict[str, tuple[Source, ...]] = {"sft": ("data",), "seqkd": ("teacher",), "external": ("data",), CONTROL: ()}
    return known.get(kind, ("student",))


def now() -> str:
    """Return the current time as records hold it: UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
