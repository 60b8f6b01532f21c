"""Records of an evaluation in a run directory: a cell's scores, its digests, and the distance from the start."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.config.base import Record, digest

OUTCOMES = ("correct", "wrong", "unparsed", "truncated")  # of an answer; under a perplexity an answer has no outcome
PERPLEXITIES = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
)  # metrics whose score is their reciprocal
TINY = 1e-6  # rounding error of a mean of scores
WORSE_TEACHER = 0.02  # difference of scores (0..1) from which a warning says that the teacher is worse than the start


class Keys(Record):
    """Digests that decide when a cell may be reused, regraded, or compared; see decisions/0012-profiles-and-three-keys.md."""

    generation: str = Field(default="", description="digest of what decides the answers, weights included")
    grading: str = Field(default="", description="digest of what decides their grades")
    comparability: str = Field(default="", description="digest of both, without weights and seed")
    fields: dict[str, Any] = Field(default={}, description="the fields of which `comparability` is the digest")

    def regraded(self, grading: str) -> Keys:
        """Return the keys of the same answers with the grades of another grading key.

        A cell of an early version, which recorded no fields, gets its old key as the only field, `unrecorded`.
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
    """When and by which grader stored answers were graded again, and the grade that they had before."""

    when: str
    grader: str
    before: EarlierGrade = Field(validation_alias="from", serialization_alias="from")


class CellRecord(Record):
    """Base of the records in a cell's results.json: it has the digest of the answers that the record was computed from."""

    samples_digest: str = Field(
        default="", description="digest of samples.parquet; empty where an early version did not record it"
    )


class CellSummary(CellRecord):
    """One task after one stage: results.json of a cell, next to its samples.parquet."""

    task: str = Field(description="the task's or the group's name")
    stage: int | None = Field(default=None, ge=0, description="0 is the start; absent in cells shared between runs")
    profile: str = Field(default="", description="the evaluation profile; empty where the suite has none")
    metric: str = Field(description="the primary metric")
    score: float = Field(ge=-TINY, le=1 + TINY, description="its mean over items, 0..1, higher is better")
    metrics: dict[str, float] = Field(default={}, description="the mean of every metric that the grader gives")
    n: int = Field(gt=0, description="items")
    clusters: int | None = Field(
        default=None, gt=0, description="number of groups of dependent items; `n` where all items are independent"
    )
    samples: int = Field(default=1, gt=0, description="answers of each item")
    pass_at: tuple[int, ...] = Field(default=(), description="the k of each pass@k among `metrics`")
    outcomes: dict[str, int] = Field(
        default={}, description="number of answers that are correct, wrong, unparsed or truncated"
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
        default=None, description="of answers that were graded again: when, by which grader, and the earlier grade"
    )


class DriftFigures(Record):
    """Means over the answers of one task, or over tasks."""

    kl_to_start: float | None = Field(
        default=None, description="KL(start ‖ current), nats per token of the start's answers"
    )
    entropy: float | None = Field(default=None, description="entropy of the current model at the answers' tokens, nats")
    entropy_prompt: float | None = Field(
        default=None, description="entropy of the current model at the prompts' tokens, nats"
    )


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
    answers: str = Field(
        default="", description="digest of prompts and answers; figures are comparable where it is equal"
    )
    seconds: float = Field(default=0.0, description="wall-clock seconds")


class StartAnswers(CellRecord):
    """The start's answers to the fixed prompts, shared between runs."""

    key: str
