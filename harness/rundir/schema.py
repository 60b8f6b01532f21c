"""The run directory's schema: its version, and the manifest, which says what a run is and was made of.

`SCHEMA` is the version of the whole directory and stands in the manifest. `upgrade` reads manifests of earlier versions.
The other files are records of `harness.rundir.records`. The pipeline writes all of them, reports and resumed runs read them.
Every description is a row of docs/run-directory.md, which `python -m harness.rundir.schema_page` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from harness.config.base import PathPart, Record, digest, is_mapping
from harness.config.run_spec import identity_of
from harness.errors import RunError
from harness.rundir.records.overlap_record import Overlap

SCHEMA = 3
Source = Literal["student", "data", "teacher"]  # who wrote the answers that an adapter trains on
SOURCES: tuple[Source, ...] = ("student", "data", "teacher")
CONTROL = "none"  # the kind of adapter that updates nothing


class Git(Record):
    """The checkout that the code ran from; nothing for an installed package."""

    commit: str | None = None
    dirty: bool | None = None
    diff: str | None = None
    diff_left_out: str | None = None


class Session(Record):
    """One process that worked on a run: what it was made of, how long it took, and how much memory it used."""

    git: Git = Field(default=Git(), description="the code's commit, whether files differed from it, and the difference")
    packages: dict[str, str] = Field(
        default={}, description="versions of Python and of the packages that decide numbers"
    )
    hardware: dict[str, Any] = Field(default={}, description="processor, count of cores, memory in GiB, GPUs")
    command: str = Field(default="", description="the command line, quoted for a shell")
    created: str = Field(default="", description="when the process started, UTC, ISO 8601")
    seconds: dict[str, float] | None = Field(
        default=None, description="wall-clock seconds by phase: models, train, evaluate, and total"
    )
    settings: dict[str, Any] = Field(
        default={},
        description="what a session may set for itself: device, threads, folders, sizes of batches and caches",
    )
    peak_memory: dict[str, Any] = Field(
        default={},
        description="bytes by phase. `of` says whose: `gpu`, what this process's tensors took at most, or `process`, its "
        "resident memory where it uses no GPU. Child processes, such as vLLM's or an external command's, are not counted",
    )


class StageRecord(Record):
    """One planned stage."""

    name: PathPart = Field(description="the task's name, or the stage's where it trains several tasks")
    trains: tuple[PathPart, ...] = Field(description="the tasks that it trains")
    steps: int = Field(default=0, ge=0, description="its training steps; 0 where an early version did not record them")
    adapter: str = Field(
        default="", description="what trains it for all methods; empty where the method under test does"
    )


class Noise(Record):
    """The further evaluations of the start, each with another seed of the engine."""

    repeats: int = Field(gt=0, description="how many there are")
    cells: tuple[str, ...] = Field(description="the cells that are evaluated again")


class RegisteredClaims(Record):
    """Claims that were registered before a run started: a line of claims.jsonl, copied into the run's manifest."""

    title: str = Field(description="the title of the claims file")
    claims: str = Field(description="digest of what the file says")
    suite: str = Field(description="the suite's name")
    configurations: dict[str, str] = Field(
        description="by adapter and order, the digest of the configuration that a run of it has, without its seed"
    )
    when: str = Field(description="when they were registered, UTC, ISO 8601")


class Manifest(Record):
    """What a run is and was made of: manifest.json."""

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
    start: str = Field(default="", description="name of the student's strength, empty where it has none")
    start_checkpoint: str | None = Field(default=None, description="folder of the student before any stage")
    stages: tuple[StageRecord, ...] = Field(description="the planned stages, in order")
    probes: tuple[PathPart, ...] = Field(description="tasks that are evaluated and never trained")
    profiles: dict[PathPart, tuple[PathPart, ...]] = Field(
        default={}, description="evaluation profile to its tasks, the suite's first one first; empty without profiles"
    )
    noise: Noise | None = Field(
        default=None, description="further evaluations of the start, where the suite asks for any"
    )
    config: dict[str, Any] = Field(default={}, description="the suite as it was resolved for this run")
    config_hash: str = Field(
        default="", description="digest of what in `config` decides numbers: a run goes on only under the same one"
    )
    weights: dict[str, str] = Field(
        default={}, description="digests of the start's, the teacher's and each stage's weights"
    )
    inputs: dict[str, str] = Field(
        default={}, description="digests of the start's configuration and tokenizer files and of a chat template"
    )
    overlap: Overlap | None = Field(default=None, description="overlap of training prompts with test sets")
    registered: tuple[RegisteredClaims, ...] = Field(
        default=(), description="the claims that were registered for the suite before the run started"
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
    def profile_names(self) -> tuple[str, ...]:
        """The evaluation profiles, the suite's first one first; one called `default` where the suite names none."""
        return tuple(self.profiles) or ("default",)


def upgrade(raw: Any, place: str) -> Any:
    """Return a manifest of an earlier version as this version has it; raises `RunError` for a version that is not known."""
    if not is_mapping(raw):
        raise RunError(f"{place} holds {type(raw).__name__}, expected the manifest of a run; restore it from a copy")
    version = raw.get("schema")
    if version == SCHEMA:
        return raw
    if version != 2:
        raise RunError(
            f"{place} has schema {version!r}, expected {SCHEMA} or 2; read it with the version that wrote it."
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
    """Return what a run of schema 2, which did not record it, trained on: known for the adapters that existed then."""
    if isinstance(inner := options.get("of"), str):
        return _trained_on(inner, {})
    if is_mapping(inner):
        return _trained_on(str(inner.get("adapter")), inner.get("options") or {})
    if kind == "gkd":
        share = float(options.get("lmbda", 0.5))
        return ("student",) if share == 1 else ("student", "data") if share else ("data",)
    known: dict[str, tuple[Source, ...]] = {"sft": ("data",), "seqkd": ("teacher",), "external": ("data",), CONTROL: ()}
    return known.get(kind, ("student",))
