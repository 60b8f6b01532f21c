"""What a run directory holds of an evaluation: scores of a task, their digests, and the distance from the start."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.config.base import Record, digest

OUTCOMES = ("correct", "wrong", "unparsed", "truncated")  # what an answer can be; an answer under a perplexity is none
PERPLEXITIES = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
)  # a score is the reciprocal of these
TINY = 1e-6  # rounding of a mean of scores
WORSE_TEACHER = 0.02  # a share: a teacher that scores so much less than the start is named


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
