"""Check of masks: the loss is on exactly the ids of the response, stop token included, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from adapters.conformance.outcomes import ConformanceError
from adapters.conformance.recording import record_updates
from adapters.conformance.small_stage import STOP, AdapterUnderTest, Script
from harness.lm.rollouts import Batch

REMEDY = "masks come from lengths: position t predicts token t + 1 of the response"


def masks_are_exact(subject: AdapterUnderTest) -> None:
    """The loss is on every response token, the stop token included, and on no prompt token or pad."""
    _ = subject.looped
    ctx = subject.stage()
    assert isinstance(ctx.engine, Script)
    batches = [batch for update in record_updates(subject.adapter, ctx) for batch in update.batches]
    if not batches:
        raise ConformanceError("no batch reached the optimiser; a stage must train on its responses")
    for batch in batches:
        _check_batch(batch, ctx.engine)


def _check_batch(batch: Batch, script: Script) -> None:
    start, targets, weights = 0, _numbers(batch.targets), _numbers(batch.weights)
    for row, predicts in _rows(batch):
        ids, positions = _numbers(row), _numbers(predicts.nonzero()[:, 0])
        inside = slice(start, start + len(positions))
        start += len(positions)
        prompt, response = _script_of(ids, script)
        _check_row(ids, positions, prompt, response)
        if targets[inside] != response:
            raise ConformanceError(
                f"the loss asks for ids {targets[inside]} where the response is {response}; {REMEDY}"
            )
        if 0.0 in weights[inside]:
            token = response[weights[inside].index(0.0)]
            raise ConformanceError(
                f"{_named(token)} of response {response} has weight 0; give it its share of the loss"
            )


def _rows(batch: Batch) -> Iterable[tuple[Tensor, Tensor]]:
    """Return ids and mask of each sequence; a packed batch holds all sequences in one row."""
    parts = batch.lengths if batch.packed else [batch.input_ids.shape[1]]
    ids, predicts = (torch.split(values, parts, dim=1) for values in (batch.input_ids, batch.predicts))
    return [
        (row, mask) for part, masks in zip(ids, predicts, strict=True) for row, mask in zip(part, masks, strict=True)
    ]


def _numbers(values: Any) -> list[Any]:
    return values.tolist()


def _script_of(ids: list[int], script: Script) -> tuple[list[int], list[int]]:
    """Return the prompt and the scripted response that a row consists of; raises `ConformanceError` for another row."""
    prompts = [p for p in script.prompts if ids[: len(p)] == p]
    if not prompts:
        raise ConformanceError(f"a row of the batch, {ids}, begins with no prompt of the stage; keep prompts whole")
    prompt = prompts[0]
    for response in script.responses(prompt):
        whole = prompt + response
        if ids[: len(whole)] == whole and not any(ids[len(whole) :]):
            return prompt, response
    for response in script.responses(prompt):
        whole = prompt + response[:-1]
        if response[-1] == STOP and ids[: len(whole)] == whole and not any(ids[len(whole) :]):
            raise ConformanceError(
                f"{_named(STOP)} of response {response} is not in the loss; keep it, or stopping is not learnt"
            )
    raise ConformanceError(f"a row of the batch, {ids}, is not a prompt and its response; train on the exact ids")


def _check_row(ids: list[int], found: list[int], prompt: list[int], response: list[int]) -> None:
    expected = list(range(len(prompt) - 1, len(prompt) + len(response) - 1))
    if found == expected:
        return
    if found and len(found) == len(expected) and (shift := found[0] - expected[0]):
        raise ConformanceError(f"the mask is shifted by {shift}: positions {found}, expected {expected}; {REMEDY}")
    if extra := sorted(set(found) - set(expected)):
        what = "a prompt token" if extra[0] < expected[0] else "a pad"
        raise ConformanceError(f"{what} is in the loss: positions {found}, expected {expected}; {REMEDY}")
    token = ids[sorted(set(expected) - set(found))[0] + 1]
    raise ConformanceError(f"{_named(token)} of response {response} is not in the loss; keep it, or it is not learnt")


def _named(token: int) -> str:
    return f"the stop token {token}" if token == STOP else f"token {token}"
