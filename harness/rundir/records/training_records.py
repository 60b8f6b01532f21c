"""Records of a stage's training in a run directory: its steps, its learning curve, and `done.json` at its end."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from harness.config.base import Record
from harness.rundir.records.cell_records import TINY


class DoneFile(Record):
    """A finished training: train/done.json, written last."""

    weights: str = Field(default="", description="digest of the stage's checkpoint")
    files: str = Field(default="", description="digest of the checkpoint's configuration and tokenizer files")
    before: str = Field(default="", description="digest of the weights that the training began with")
    teacher: str | None = Field(
        default=None, description="digests of the teacher's weights and configuration; null without a teacher"
    )
    steps: int = Field(ge=0, description="training steps taken")
    seconds: float = Field(default=0.0, description="wall-clock seconds of the training")
    prompts: int = Field(default=0, ge=0, description="number of training items that prompts were drawn from")
    unchanged: str = Field(
        default="",
        description="folder of the weights that the stage began with, where it changed no weights; relative to the run's "
        "directory where it is in it",
    )
    kept: bool = Field(
        default=True, description="false once the checkpoint was removed as the suite's `checkpoints` asks"
    )
    logs: dict[str, str] = Field(
        default={}, description="digests of the files next to it: steps.jsonl, curve.jsonl, rollouts.parquet"
    )


class StepLine(Record):
    """One training step: a line of train/steps.jsonl. Fields that a method lacks are null; `external` may add fields."""

    model_config = ConfigDict(extra="allow")

    step: int = Field(ge=0, description="from 0 within the stage")
    loss: float | None = Field(default=None, description="mean over the step's updates")
    grad_norm: float | None = Field(
        default=None, description="mean over the step's updates of the norm before clipping"
    )
    lr: float | None = Field(default=None, description="learning rate of the last update")
    entropy: float | None = Field(
        default=None, description="entropy of the student over the full vocabulary, nats per response token"
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
    teacher_entropy: float | None = Field(
        default=None,
        description="entropy of the teacher, nats per response token; for a method that does not request it, the highest "
        "lower bound that the teacher's top K gives",
    )
    teacher_agreement: float | None = Field(
        default=None, description="share of sampled tokens that are the teacher's most probable token, 0..1"
    )
    teacher_neginf_share: float | None = Field(
        default=None,
        description="share of sampled tokens to which the teacher gives a probability below 1e-7, 0..1; a log-probability of "
        "−inf itself stops the run",
    )
    routed_fkl: float | None = Field(default=None, description="share of tokens routed to forward KL, 0..1")
    fkl_gradient_share: float | None = Field(
        default=None, description="the routed tokens' share of all absolute logit gradients, 0..1"
    )
    pull_up: float | None = Field(
        default=None,
        description="mean descent step on the logit of the teacher's most probable token, where the student gives it less",
    )
    pull_down: float | None = Field(
        default=None, description="mean descent step on that logit downwards, where the student gives the token more"
    )
    top_k: float | None = Field(
        default=None, description="K: the next three figures are about the teacher's K most probable tokens"
    )
    teacher_top_mass: float | None = Field(
        default=None, description="the teacher's probability of these K tokens, 0..1"
    )
    student_top_mass: float | None = Field(
        default=None, description="the student's probability of these K tokens, 0..1"
    )
    overlap: float | None = Field(
        default=None, description="share of these K tokens that are among the student's K most probable ones, 0..1"
    )
    reward_mean: float | None = Field(
        default=None, description="mean grade of the rollouts, for methods that grade them"
    )
    mismatch_mean: float | None = Field(
        default=None,
        description="mean absolute difference between trainer's and engine's log-probabilities of the rollouts, nats",
    )
    mismatch_max: float | None = Field(default=None, description="the largest of these differences, nats")
    mismatch_kl: float | None = Field(default=None, description="estimate of KL(engine ‖ trainer), nats per token")
    staleness: int | None = Field(
        default=None,
        ge=0,
        description="by how many steps the weights that drew the rollouts are older than the student; null where "
        "`training.staleness` is 0",
    )
    importance_mean: float | None = Field(
        default=None, description="mean of q(student) / q(weights that drew) over tokens that were drawn ahead"
    )
    importance_max: float | None = Field(default=None, description="the largest of these ratios")
    importance_cut: float | None = Field(
        default=None,
        description="share of these tokens with a ratio above 2, at which the loss's weight is capped, 0..1",
    )
    response_tokens_mean: float | None = Field(default=None, description="mean length of the rollouts in tokens")
    truncated_share: float | None = Field(default=None, description="share of rollouts cut off at max_new_tokens, 0..1")
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
        """The line's fields by name without `seconds`, those that an external command added included."""
        return {name: value for name, value in self if name != "seconds"}


class CurvePoint(Record):
    """A task's score within a stage, on its first test items under the curves' profile: a line of train/curve.jsonl."""

    step: int = Field(ge=0, description="training steps done; 0 is the stage's start")
    task: str = Field(description="the task")
    score: float = Field(ge=-TINY, le=1 + TINY, description="mean over the items, 0..1")
    items: tuple[float, ...] = Field(description="the score of each item, in the task's order; the mean of its answers")
    clusters: tuple[str, ...] = Field(description="the cluster of each item; items of one cluster depend on each other")
