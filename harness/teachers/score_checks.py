"""Check what a teacher returns: types, shapes, ids, order, and that its numbers are consistent.

A placeholder for a failed request, a stale or shifted answer and one score for many tokens have the right type, but no model
computes them. An answer that is wrong but consistent cannot be detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from harness.errors import HarnessError, ModelError, TrainingError
from harness.lm import output_layer
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch, Rollout
from harness.lm.tiles import ModelRows, Rows
from harness.teachers.teacher import Teacher

CERTAIN_STEP, CERTAIN_RESPONSE = 16, 8  # tokens with probability 1 that are refused, in a step and in a response
# So many bit-identical scores in a row are refused below this log-probability; near 0, rounding makes scores equal.
EQUAL_RUN, EQUAL_BELOW = 3, -1e-3
PLACEHOLDER = -50.0  # a whole number at or below this is not a score
TOLERANCE = 1e-2  # of probabilities, and of log-probabilities in nats
CHECKED_ROWS = 8  # positions of each slice of `rows`


def ask(
    teacher: Teacher, batch: Batch, request: TeacherRequest, temperature: float, vocabulary: int | None = None
) -> TeacherScores:
    """Return a teacher's scores after checking them; `vocabulary` is the number of ids that the student knows.

    Raises `TrainingError` for any exception of the teacher and for scores that no model computes.
    """
    return check_scores(unchecked_scores(teacher, batch, request, temperature), batch, request, vocabulary)


def unchecked_scores(teacher: Teacher, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
    """Return a teacher's scores without `check_scores`, which reads them and so waits for the device."""
    try:
        return teacher.score(batch, request, temperature)
    except HarnessError:
        raise
    except Exception as error:
        raise TrainingError(_failure_message(error)) from error


def check_scores(
    scores: TeacherScores, batch: Batch, request: TeacherRequest, vocabulary: int | None = None
) -> TeacherScores:
    """Return the scores of the batch's N targets; raises `TrainingError` for scores that no model computes.

    The `rows` of the result are checked where they are used, see `CheckedRows`.
    """
    if not isinstance(cast("Any", scores), TeacherScores):
        raise TrainingError(f"the teacher returned {type(scores).__name__}, expected TeacherScores; fix its `score`")
    count = len(batch.targets)
    _check_tensor("sampled", scores.sampled, (count,), batch)
    _check_tensor("top_logprobs", scores.top_logprobs, (count, request.top_k), batch)
    _check_tensor("top_ids", scores.top_ids, (count, request.top_k), batch, ids=True)
    if request.entropy:
        _check_tensor("entropy", scores.entropy, (count,), batch)
    host = _on_host(scores)
    _check_numbers(host)
    _check_ids(host.top_ids, vocabulary)
    _check_agreement(host, batch.targets.cpu())
    _check_placeholders(host.sampled, batch)
    if request.entropy and not bool((cast("Tensor", host.entropy) >= -1e-3).all()):
        raise TrainingError("the teacher's entropy is negative or NaN, expected nats of at least 0; fix its `score`")
    if not request.vocabulary:
        return scores
    if not callable(scores.rows):
        raise TrainingError(
            "the teacher returned no `rows`, its log-probabilities over the vocabulary; fix its `score`"
        )
    return replace(scores, rows=CheckedRows(scores.rows, scores, batch.targets, vocabulary))


def refuse_certainty(parts: Sequence[tuple[Batch, Tensor]]) -> None:
    """Raise `TrainingError` if every token of a response, or of a whole step, has probability 1.

    `parts` are a step's batches with the teacher's log-probabilities (N,) of their targets. A failed request that is filled
    with zeros looks like this. A short answer may be certain: float32 rounds a log-probability to 0 if all other tokens have
    less than 6e-8 of the probability. So a response is refused from 8 tokens on, and a step from 16.
    """
    count = sum(scores.numel() for _, scores in parts)
    if count >= CERTAIN_STEP and all(bool((scores == 0).all()) for _, scores in parts):
        raise TrainingError(
            f"the teacher gave probability 1 to all {count} tokens of a step, so it did not score them; check its log"
        )
    for batch, scores in parts:
        for (item, task), part in _by_response(scores, batch):
            if len(part) >= CERTAIN_RESPONSE and bool((part == 0).all()):
                raise TrainingError(
                    f"the teacher gave probability 1 to all {len(part)} tokens of a response to item {item} of {task}, so it "
                    "did not score them; check its log"
                )


def refuse_unknown_ids(rollouts: Sequence[Rollout], vocabulary: int) -> None:
    """Raise `ModelError` for a response with an id outside the student's output layer of `vocabulary` rows."""
    ids = [id for rollout in rollouts for id in rollout.response]
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ModelError(
            f"found response ids from {min(ids)} to {max(ids)}, expected 0 to {vocabulary - 1}, the rows of the student's "
            "output layer; check that tokenizer and student belong together"
        )


def _failure_message(error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or "without a message"
    return f"the teacher failed with {type(error).__name__}: {reason}; check its log, then run the same command again"


def _on_host(scores: TeacherScores) -> TeacherScores:
    """Return the scores of single tokens on the host, where checks do not wait for a device."""
    entropy = None if scores.entropy is None else scores.entropy.cpu()
    return TeacherScores(scores.sampled.cpu(), scores.top_ids.cpu(), scores.top_logprobs.cpu(), entropy)


def _check_tensor(name: str, value: Any, shape: tuple[int, ...], batch: Batch, ids: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise TrainingError(f"the teacher's `{name}` is {type(value).__name__}, expected a tensor; fix its `score`")
    if tuple(value.shape) != shape:
        raise TrainingError(
            f"the teacher's `{name}` has shape {tuple(value.shape)}, expected {shape}, one entry for each response token; fix "
            "its `score`"
        )
    if ids and value.dtype != torch.int64:
        raise TrainingError(f"the teacher's `{name}` is {value.dtype}, expected torch.int64; fix its `score`")
    if not ids and value.dtype not in (torch.float32, torch.float64):
        raise TrainingError(
            f"the teacher's `{name}` is {value.dtype}, which rounds log-probabilities, expected torch.float32; fix its `score`"
        )
    if value.device != batch.targets.device:
        raise TrainingError(
            f"the teacher's `{name}` is on {value.device}, expected {batch.targets.device}; fix its `score`"
        )


def _check_numbers(scores: TeacherScores) -> None:
    for name, values in (("a response token", scores.sampled), ("its most probable tokens", scores.top_logprobs)):
        if not torch.isfinite(values).all():
            raise TrainingError(
                f"the teacher's log-probability of {name} is not finite; check its weights and dtype, or its server"
            )
        if (values > 1e-4).any():
            raise TrainingError(
                f"the teacher's log-probability of {name} is above 0; it must return natural logarithms of probabilities"
            )
    if scores.top_logprobs.shape[-1] and (mass := float(scores.top_logprobs.exp().sum(-1).max())) > 1 + TOLERANCE:
        raise TrainingError(
            f"the teacher's most probable tokens have a probability of {mass:.3g} together, expected at most 1; it must "
            "return natural logarithms of probabilities"
        )


def _check_ids(top_ids: Tensor, vocabulary: int | None) -> None:
    if not top_ids.numel():
        return
    low, high = int(top_ids.min()), int(top_ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise TrainingError(
            f"the teacher's `top_ids` contain id {low if low < 0 else high}, which the student does not have; both models "
            "need the same vocabulary"
        )
    ordered = top_ids.sort(dim=-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise TrainingError("the teacher's `top_ids` contain an id twice at one position; fix its `score`")


def _check_agreement(scores: TeacherScores, targets: Tensor) -> None:
    """Refuse a score of a response token that contradicts the teacher's most probable tokens at its position."""
    top, sampled = scores.top_logprobs, scores.sampled
    if not top.numel():
        return
    if bool((top[:, 1:] > top[:, :-1] + TOLERANCE).any()):
        raise TrainingError("the teacher's `top_logprobs` do not fall from the first to the last; sort them")
    among = scores.top_ids == targets[:, None]
    # A token among the top K has one score; any other is at most as probable as the last of them.
    bound = torch.where(among.any(-1), torch.where(among, top, 0.0).sum(-1), top[:, -1])
    apart = sampled - bound
    wrong = (apart > TOLERANCE) | (among.any(-1) & (apart < -TOLERANCE))
    # The probabilities of the response token and of the other most probable tokens add up to at most 1.
    mass = sampled.exp() + torch.where(among, 0.0, top.exp()).sum(-1)
    if bool((wrong | (mass > 1 + TOLERANCE)).any()):
        place = int((wrong | (mass > 1 + TOLERANCE)).nonzero()[0])
        raise TrainingError(
            f"the teacher's log-probability of a response token, {float(sampled[place]):.4g}, contradicts its most probable "
            f"tokens (first {float(top[place, 0]):.4g}); its answer belongs to another position, response or request"
        )


def _check_placeholders(sampled: Tensor, batch: Batch) -> None:
    """Refuse numbers in place of a failed request's scores: -100, -9999 and the like, or one score for many tokens."""
    filled = (sampled <= PLACEHOLDER) & (sampled == sampled.round())
    if bool(filled.any()):
        raise TrainingError(
            f"the teacher's log-probability of a response token is {float(sampled[filled][0]):g}, a placeholder instead of a "
            "score; check its log"
        )
    for (item, task), part in _by_response(sampled, batch):
        length = min(EQUAL_RUN, len(part))
        if len(part) < 2 or (length < EQUAL_RUN and not bool((part == part.round()).all())):
            continue
        runs = part.unfold(0, length, 1)
        if bool(((runs == runs[:, :1]).all(-1) & (runs[:, 0] < EQUAL_BELOW)).any()):
            raise TrainingError(
                f"the teacher gave the same log-probability to {length} tokens in a row of a response to item {item} of "
                f"{task}, so it did not score them one by one; check its log"
            )
    if len(sampled) >= CERTAIN_STEP and bool((sampled == sampled[0]).all()) and float(sampled[0]) < EQUAL_BELOW:
        raise TrainingError(
            f"the teacher gave the log-probability {float(sampled[0]):.4g} to all {len(sampled)} tokens, so it did not score "
            "them; check its log"
        )


@dataclass(frozen=True)
class CheckedRows:
    """A teacher's `rows`, checked when they are used, at a few positions of each slice."""

    rows: Rows
    scores: TeacherScores
    targets: Tensor
    vocabulary: int | None

    @property
    def model(self) -> ModelRows | None:
        """The rows of a model in this process, whose closed form needs its states and head; None for any other teacher.

        A few rows are checked on a CPU; on a GPU the check would make it wait.
        """
        if not isinstance(self.rows, ModelRows):
            return None
        if self.rows.hidden.device.type in output_layer.REFUSES_IDS_AT_ONCE:
            self(_few(len(self.targets)))
        return self.rows

    def __call__(self, place: slice) -> Tensor:
        """Return log-probabilities (n, V) of a slice of positions; raises `TrainingError` for rows that no model computes."""
        ids = torch.cat([self.targets[:, None], self.scores.top_ids], dim=1)[place]
        own = torch.cat([self.scores.sampled[:, None], self.scores.top_logprobs], dim=1)[place]
        try:
            rows = self.rows(place)
        except HarnessError:
            raise
        except Exception as error:
            raise TrainingError(_failure_message(error)) from error
        if not isinstance(cast("Any", rows), Tensor) or rows.ndim != 2 or len(rows) != len(own):
            shape = tuple(rows.shape) if isinstance(cast("Any", rows), Tensor) else type(rows).__name__
            raise TrainingError(
                f"the teacher's `rows` are {shape}, expected one row for each of {len(own)} positions; fix its `score`"
            )
        if not rows.is_floating_point() or (self.vocabulary is not None and rows.shape[1] != self.vocabulary):
            raise TrainingError(
                f"the teacher's `rows` are {rows.dtype} of width {rows.shape[1]}, expected log-probabilities of "
                f"{self.vocabulary} tokens; fix its `score`"
            )
        few = _few(len(own))
        some = rows[few].float()
        if not bool((some.logsumexp(-1).abs() <= TOLERANCE).all()):
            raise TrainingError(
                "the teacher's `rows` are not log-probabilities: their probabilities do not add up to 1; normalise them"
            )
        apart = (some.gather(-1, ids[few]) - own[few]).abs()
        if not bool((apart <= 10 * TOLERANCE).all()):
            raise TrainingError("the teacher's `rows` contradict its scores of single tokens; fix its `score`")
        return rows


def _few(count: int) -> slice:
    """Return evenly spaced positions of so many, at most CHECKED_ROWS."""
    return slice(None, None, max(1, -(-count // CHECKED_ROWS)))


def _by_response(scores: Tensor, batch: Batch) -> list[tuple[tuple[str, str], Tensor]]:
    """Return each response's item and task with its scores; empty if there is not one score for each response token."""
    lengths = [len(rollout.response) for rollout in batch.rollouts]
    if len(scores) != sum(lengths):
        return []
    names = [(rollout.example.item_id, rollout.example.task) for rollout in batch.rollouts]
    return list(zip(names, torch.split(scores, lengths), strict=True))
