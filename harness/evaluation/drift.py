"""Measure how far a model has moved from its start, in the same way after every stage and for every adapter.

The start p answers fixed prompts once, by sampling at temperature 1: the first test items of each task that generates. After
each stage, the current model q reads the same prompts with the start's answers, so that methods and stages are compared at the
same states c_t. For each item with prompt x and answer y:

- `kl_to_start` = 1/|y| sum_t KL(p(.|c_t) || q(.|c_t)), t over the tokens of y: full vocabulary, nats per token. This is the
  forward direction, which grows where q no longer gives probability to what the start says (arXiv 2509.04259).
- `entropy` = 1/|y| sum_t H(q(.|c_t)), t over the tokens of y; `entropy_prompt` the same over the tokens of x but its first.

A task's figure is the mean over its items, the overall figure the mean over tasks. A (tokens, vocabulary) tensor of logits is
never held.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from harness.config.base import digest
from harness.config.evaluation import Drift, Evaluation
from harness.config.models import Model
from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine
from harness.errors import ModelError
from harness.evaluation.scoring import numbered_ids
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.lm.logprobs import divergence_of, head_of, response_hidden
from harness.lm.output_layer import scan
from harness.lm.rollouts import Batch, Example, Rollout, make_batches
from harness.lm.seeding import derive_seed
from harness.lm.tiles import Head
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import DRIFT_FIGURES, DriftSummary, TaskDrift

SEQUENCES = 32  # in one forward pass


@dataclass(frozen=True)
class DriftAnswers:
    """A fixed prompt with the start's answer to it, as token ids and as text."""

    task: str
    item_id: str
    prompt_ids: list[int]
    response_ids: list[int]
    finish: str
    prompt: str
    response: str


def select_tasks(tasks: Iterable[Task], evaluation: Evaluation, settings: Drift) -> dict[str, tuple[Task, int]]:
    """Return the tasks whose prompts the start answers, by name, each with the number of its first test items."""
    count = min(settings.items, evaluation.limit or settings.items)
    return {task.name: (task, count) for task in tasks if task.generates}


def draw_answers(
    start: Loaded, tasks: Mapping[str, tuple[Task, int]], evaluation: Evaluation, settings: Drift
) -> list[DriftAnswers]:
    """Return the start's sampled answers to `tasks`; those of a task depend only on the task and the evaluation's seed."""
    engine = HFEngine(start.model, start.renderer.tokenizer, evaluation.batch_size)
    return [
        answered
        for task, count in tasks.values()
        for answered in _answer(start, engine, task, task.test_docs(count), evaluation.seed, settings)
    ]


def measure_drift(
    start: Path, current: Path, spec: Model, device: str, answered: Sequence[DriftAnswers], same: bool
) -> pd.DataFrame:
    """Return one row per item with DRIFT_FIGURES of checkpoint `current` against `start`, in the order of `answered`.

    `spec` is the student's model, `same` says that both checkpoints are equal. One model is in memory at a time, with the
    start's output layer and its hidden states at the answers' tokens. Raises `ModelError` where the output layers have
    different sizes.
    """
    first = load_checkpoint(start, spec, device)
    batches = _batches(answered, device)
    reference = [_hidden(first.model, batch)[_of_answer(batch, answered)] for batch in batches]
    head = head_of(first.model)
    model = first.model if same else None
    del first
    model = model if model is not None else load_checkpoint(current, spec, device).model
    _refuse_other_vocabulary(head, head_of(model), current)
    rows = [
        row
        for batch, hidden in zip(batches, reference, strict=True)
        for row in _rows(model, batch, hidden, head, answered)
    ]
    return pd.DataFrame(rows).sort_values("index").drop(columns="index").reset_index(drop=True)


def summarise_drift(
    rows: pd.DataFrame, answered: Sequence[DriftAnswers], settings: Drift, started: float
) -> DriftSummary:
    """Return the summary of `measure_drift`'s rows, without stage and weights; `started` is by `time.perf_counter`."""
    tasks = {
        str(task): TaskDrift(**{name: float(part[name].mean()) for name in DRIFT_FIGURES}, items=len(part))
        for task, part in rows.groupby("task", sort=False)
    }
    means: dict[str, float] = {
        name: float(pd.Series([getattr(found, name) for found in tasks.values()]).mean()) for name in DRIFT_FIGURES
    }
    return DriftSummary(
        tasks=tasks,
        settings=settings.model_dump(mode="json"),
        answers=digest([[a.task, a.item_id, a.prompt_ids, a.response_ids] for a in answered]),
        seconds=round(time.perf_counter() - started, 3),
    ).model_copy(update=means)


def to_frame(answered: Sequence[DriftAnswers]) -> pd.DataFrame:
    """Return the answers as a table with a column per field, to be stored next to the start's figures."""
    return pd.DataFrame([vars(answer) for answer in answered])


def from_frame(rows: pd.DataFrame) -> list[DriftAnswers]:
    """Return the answers in a table of `to_frame`."""
    fields = [name for name in DriftAnswers.__dataclass_fields__ if not name.endswith("_ids")]
    return [
        DriftAnswers(
            **{name: row[name] for name in fields},
            prompt_ids=[int(i) for i in row["prompt_ids"]],
            response_ids=[int(i) for i in row["response_ids"]],
        )
        for row in rows.to_dict("records")
    ]


def token_kl(start_hidden: Tensor, start_head: Head, hidden: Tensor, head: Head) -> Tensor:
    """Return KL(start || current), (N,) in nats over the full vocabulary, from hidden states (N, H) of both models."""

    def start_rows(rows: slice) -> Tensor:
        return start_head.logits(start_hidden[rows].to(start_head.weight.dtype)).log_softmax(-1)

    return divergence_of(hidden, head, start_rows, lambda logq, logp: (logp.exp() * (logp - logq)).sum(-1))


def _answer(
    start: Loaded, engine: HFEngine, task: Task, docs: Sequence[dict[str, Any]], seed: int, settings: Drift
) -> Iterator[DriftAnswers]:
    renderer = start.renderer
    texts = task.asked(docs, renderer)
    prompts = renderer.encode_prompts(texts)
    sampling = Sampling(
        max_new_tokens=min(settings.max_new_tokens, task.generation["max_gen_toks"]),
        stop_ids=renderer.stop_ids,
        seed=derive_seed(seed, "drift", task.name),
    )
    answers = engine.generate(prompts, sampling)
    for identity, text, prompt, done in zip(numbered_ids(docs), texts, prompts, answers, strict=True):
        response = renderer.decode(done.tokens)
        yield DriftAnswers(task.name, identity, prompt, done.tokens, done.finish, text, response)


def _batches(answered: Sequence[DriftAnswers], device: str) -> list[Batch]:
    """Return batches in which every token but the first counts as a response; an example's id is the answer's index."""
    rollouts = [
        Rollout(Example(a.task, str(i), {}, whole[:1], []), whole[1:], "stop")
        for i, a in enumerate(answered)
        if (whole := a.prompt_ids + a.response_ids)
    ]
    return make_batches(rollouts, "token_mean", SEQUENCES, device)


def _of_answer(batch: Batch, answered: Sequence[DriftAnswers]) -> Tensor:
    """Return a mask (N,) of the batch's positions that predict a token of the answer, rather than of the prompt."""
    lengths = [(len(r.response), len(answered[_index(r)].response_ids)) for r in batch.rollouts]
    parts = [torch.arange(whole) >= whole - answer for whole, answer in lengths]
    return torch.cat(parts).to(batch.targets.device)


def _index(rollout: Rollout) -> int:
    return int(rollout.example.item_id)


@torch.no_grad()
def _hidden(model: Any, batch: Batch) -> Tensor:
    return response_hidden(model.eval(), batch)


@torch.no_grad()
def _rows(
    model: Any, batch: Batch, start_hidden: Tensor, start_head: Head, answered: Sequence[DriftAnswers]
) -> Iterator[dict[str, Any]]:
    hidden, head = _hidden(model, batch), head_of(model)
    inside = _of_answer(batch, answered)
    entropy = scan(hidden.to(head.weight.dtype), head, batch.targets[:, None]).entropy.double().cpu()
    kl = token_kl(start_hidden, start_head, hidden[inside], head).double().cpu()
    lengths = [len(answered[_index(r)].response_ids) for r in batch.rollouts]
    by_row = entropy.split([len(r.response) for r in batch.rollouts])
    for rollout, answer, divergence, entropies in zip(batch.rollouts, lengths, kl.split(lengths), by_row, strict=True):
        found = answered[_index(rollout)]
        yield {
            "index": _index(rollout),
            "task": found.task,
            "item_id": found.item_id,
            "prompt_tokens": len(found.prompt_ids),
            "response_tokens": answer,
            "kl_to_start": divergence.mean().item(),
            "entropy": entropies[len(entropies) - answer :].mean().item(),
            "entropy_prompt": entropies[: len(entropies) - answer].mean().item(),
        }


def _refuse_other_vocabulary(start: Head, current: Head, folder: Path) -> None:
    if len(start.weight) != len(current.weight):
        raise ModelError(
            f"{folder} has {len(current.weight)} rows in its output layer and the start has {len(start.weight)}; the "
            "distance from the start needs the same vocabulary, so keep it, or turn this off with evaluation.drift: null"
        )
