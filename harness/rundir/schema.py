"""The files of a run directory as typed records: the pipeline writes them, reports and resumed runs read them.

`SCHEMA` is the version of the whole directory and stands in the manifest. `upgrade` reads manifests of earlier versions.
Every description here is a row of docs/run-directory.md, which `python -m harness.rundir.schema_page` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from harness.config.base import PathPart, Record, digest, is_mapping
from harness.config.run_spec import identity_of
from harness.errors import RunError
from harness.rundir.overlap_record import Overlap

SCHEMA = 3
Source = Literal["student", "data", "teacher"]  # who wrote the answers that an adapter trains on
SOURCES: tuple[Source, ...] = ("student", "data", "teacher")
CONTROL = "none"  # the kind of adapter that updates nothing
OUTCOMES = ("correct", "wrong", "unparsed", "truncated")  # what an answer can be; an answer under a perplexity is none
PERPLEXITIES = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
)  # a score is the reciprocal of these
TINY = 1e-6  # rounding of a mean of scores


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


class Keys(Record):
    """Digests that say when a cell may be reused, regraded, or compared: see decisions/0012-profiles-and-three-keys.md."""

    generation: str = Field(default="", description="what decides the answers, weights included")
    grading: str = Field(default="", description="what decides their grades")
    comparability: str = Field(default="", description="both, without weights and seed")
    fields: dict[str, Any] = Field(default={}, description="what `comparability` is the digest of")

    def regraded(self, grading: str) -> Keys:
        """Return the keys of the same answers with other grades.

        Cells of versions that recorded no fields get their old key as the one field `unrecorded`.
        """
        fields = {**(self.fields or {"unrecorded": self.comparability}), "grading": grading}
        return Keys(generation=self.generation, grading=grading, comparability=digest(fields), fields=fields)


class Member(Record):
    """One task of a group."""

    score: float
    metric: str
    n: int


class GroupRecord(Record):
    """How a group's score is made of its tasks' scores."""

    weight_by_size: bool
    tasks: dict[str, Member]


class EarlierGrade(Record):
    """The grade that a regraded cell had before."""

    metric: str
    score: float
    grading: str = ""


class Regrading(Record):
    """When and by which grader stored answers were graded again, and the grade that they had."""

    when: str
    grader: str
    before: EarlierGrade = Field(validation_alias="from", serialization_alias="from")


class CellRecord(Record):
    """The base of what a cell's results.json holds: it names the answers that it was made of."""

    samples_digest: str = Field(
        default="", description="digest of samples.parquet; empty where an early version did not record it"
    )


class CellSummary(CellRecord):
    """One task after one stage: results.json of a cell, next to its samples.parquet."""

    task: str = Field(description="the task's or the group's name")
    stage: int | None = Field(default=None, ge=0, description="0 is the start; absent in cells shared between runs")
    profile: str = Field(default="", description="the evaluation profile, where the suite has any")
    metric: str = Field(description="the primary metric")
    score: float = Field(ge=-TINY, le=1 + TINY, description="its mean over items, 0..1, higher is better")
    metrics: dict[str, float] = Field(default={}, description="the mean of every metric that the grader gives")
    n: int = Field(gt=0, description="items")
    clusters: int | None = Field(
        default=None, gt=0, description="groups of items that are independent of each other; `n` where no items depend"
    )
    samples: int = Field(default=1, gt=0, description="answers of each item")
    pass_at: tuple[int, ...] = Field(default=(), description="the k of each pass@k among `metrics`")
    outcomes: dict[str, int] = Field(
        default={}, description="counts of answers that are correct, wrong, unparsed or truncated"
    )
    response_tokens_mean: float | None = Field(default=None, description="mean length of an answer in tokens")
    response_tokens_max: int | None = Field(default=None, description="longest answer in tokens")
    seconds: float = Field(default=0.0, description="wall-clock seconds of this cell's share of the evaluation")
    weights: str = Field(default="", description="digest of the weights that answered")
    seed: int | None = Field(default=None, description="seed of the engine's draws")
    questions: str | None = Field(
        default=None,
        description="digest of what a generating task asks; answers are regraded only while the task asks the same",
    )
    keys: Keys = Field(default=Keys(), description="digests: `generation`, `grading`, `comparability`, `fields`")
    group: GroupRecord | None = Field(
        default=None, description="of a group: how its tasks are weighted, and their scores"
    )
    regraded: Regrading | None = Field(
        default=None, description="of later grades: when, by which grader, and from which grades"
    )


class DriftFigures(Record):
    """Means over the answers of one task, or over tasks."""

    kl_to_start: float | None = Field(
        default=None, description="KL(start ‖ current), nats per token of the start's answers"
    )
    entropy: float | None = Field(default=None, description="of the current model at the answers' tokens, nats")
    entropy_prompt: float | None = Field(default=None, description="of the current model at the prompts' tokens, nats")


DRIFT_FIGURES = tuple(DriftFigures.model_fields)


class TaskDrift(DriftFigures):
    """One task's means over its items."""

    items: int | None = Field(default=None, description="prompts")


class DriftSummary(CellRecord, DriftFigures):
    """The distance from the start after one stage: results.json of a drift folder. Its figures are means over tasks."""

    stage: int | None = Field(default=None, ge=0, description="0 is the start")
    weights: str = Field(default="", description="digest of the weights that were measured")
    start: str = Field(default="", description="digest of the start's weights")
    tasks: dict[str, TaskDrift] = Field(default={}, description="the figures of each task")
    settings: dict[str, Any] = Field(default={}, description="`evaluation.drift` of the suite")
    answers: str = Field(default="", description="digest of prompts and answers; figures compare where it is the same")
    seconds: float = Field(default=0.0, description="wall-clock seconds")


class StartAnswers(CellRecord):
    """The start's answers to the fixed prompts, shared between runs."""

    key: str


class DoneFile(Record):
    """A finished training: train/done.json, written last."""

    weights: str = Field(default="", description="digest of the stage's checkpoint")
    files: str = Field(default="", description="digest of the checkpoint's configuration and tokenizer files")
    before: str = Field(default="", description="digest of the weights that the training began with")
    teacher: str | None = Field(default=None, description="digest of the teacher's weights; null without a teacher")
    steps: int = Field(ge=0, description="training steps taken")
    seconds: float = Field(default=0.0, description="wall-clock seconds of the training")
    prompts: int = Field(default=0, ge=0, description="training items that prompts were drawn from")
    unchanged: str = Field(
        default="", description="folder of the weights that the stage began with, where it changed none and wrote none"
    )
    kept: bool = Field(
        default=True, description="false once the checkpoint was removed as the suite's `checkpoints` asks"
    )
    logs: dict[str, str] = Field(
        default={}, description="digests of the files next to it: steps.jsonl, curve.jsonl, rollouts.parquet"
    )


class StepLine(Record):
    """One training step: a line of train/steps.jsonl. What a method does not have is null; `external` may add fields."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(ge=0, description="from 0 within the stage")
    loss: float | None = Field(default=None, description="mean over the step's updates")
    grad_norm: float | None = Field(
        default=None, description="mean over the step's updates of the norm before clipping"
    )
    lr: float | None = Field(default=None, description="learning rate of the last update")
    entropy: float | None = Field(
        default=None, description="of the student over the full vocabulary, nats per response token"
    )
    advantage_mean: float | None = Field(
        default=None, description="mean of log p(teacher) − log q(student) over the sampled tokens, nats"
    )
    advantage_q01: float | None = Field(default=None, description="1 % quantile of the same")
    advantage_q05: float | None = Field(default=None, description="5 % quantile")
    advantage_q25: float | None = Field(default=None, description="25 % quantile")
    advantage_q50: float | None = Field(default=None, description="median")
    advantage_q75: float | None = Field(default=None, description="75 % quantile")
    advantage_q95: float | None = Field(default=None, description="95 % quantile")
    advantage_q99: float | None = Field(default=None, description="99 % quantile")
    routed_fkl: float | None = Field(default=None, description="share of tokens that took forward KL, 0..1")
    fkl_gradient_share: float | None = Field(
        default=None, description="their share of all absolute logit gradients, 0..1"
    )
    pull_up: float | None = Field(
        default=None,
        description="mean descent step on the logit of the teacher's most probable token, where the student gives it less",
    )
    pull_down: float | None = Field(default=None, description="the same, where the student gives it more")
    top_k: float | None = Field(
        default=None, description="how many of the teacher's tokens the next three figures look at"
    )
    teacher_top_mass: float | None = Field(default=None, description="the teacher's probability on them, 0..1")
    student_top_mass: float | None = Field(default=None, description="the student's probability on them, 0..1")
    overlap: float | None = Field(
        default=None, description="share of them among the student's most probable tokens, 0..1"
    )
    reward_mean: float | None = Field(
        default=None, description="mean grade of the rollouts, for methods that grade them"
    )
    mismatch_mean: float | None = Field(
        default=None,
        description="mean |difference| of the trainer's and vLLM's log-probabilities of the rollouts, nats",
    )
    mismatch_max: float | None = Field(default=None, description="the largest of these differences, nats")
    mismatch_kl: float | None = Field(default=None, description="estimate of KL(engine ‖ trainer), nats per token")
    response_tokens_mean: float | None = Field(default=None, description="mean length of the rollouts in tokens")
    truncated_share: float | None = Field(default=None, description="share of rollouts that the budget cut off, 0..1")
    tokens: float | None = Field(default=None, description="tokens of the step, prompts included")
    padding_share: float | None = Field(
        default=None, description="share of padding among the positions of the step's micro-batches, 0..1"
    )
    seconds: dict[str, float | None] | None = Field(
        default=None, description="wall-clock seconds by phase: `generate`, `teacher`, `student`, and `step` for all"
    )
    warnings: tuple[str, ...] | None = Field(
        default=None,
        description="names of the guards that warned at this step; `non-finite` ends the stage; null where no guard ran",
    )

    @property
    def figures(self) -> dict[str, Any]:
        """The line's fields by name, those of an external command included, without `seconds`."""
        return {name: value for name, value in self if name != "seconds"}


class CurvePoint(Record):
    """One task inside a stage: a line of train/curve.jsonl, on the first test items, under the suite's first profile."""

    step: int = Field(ge=0, description="training steps done; 0 is the stage's start")
    task: str = Field(description="the task")
    score: float = Field(ge=-TINY, le=1 + TINY, description="mean over the items, 0..1")
    items: tuple[float, ...] = Field(description="the score of each item, in the task's order")
    clusters: tuple[str, ...] = Field(description="the cluster of each item; items of one cluster depend on each other")


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
