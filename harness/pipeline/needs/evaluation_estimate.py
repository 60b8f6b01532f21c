"""Estimate what one evaluation of a checkpoint needs: memory by part, tokens, operations. The doctor's probe measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from harness.lm.chat import Renderer
from harness.lmeval.task import Task
from harness.pipeline.needs.memory_estimate import ModelShape, StageNeeds, elements_of_layer

SAMPLED_TEST_ITEMS = 50  # test items of a task whose prompts are measured


@dataclass(frozen=True)
class CellRequests:
    """What one cell asks of a model.

    `requests` is the number of prompts, or of scored texts; `answers` how often each is answered. `prompt` is the length of
    the longest one in tokens, and `budget` the most tokens of an answer, 0 where texts are scored.
    """

    requests: int
    answers: int
    prompt: int
    budget: int


def count_requests(task: Task, renderer: Renderer | None, limit: int | None, assumed: int) -> CellRequests:
    """Return what a cell's task asks about its first `limit` test items.

    Without a `renderer`, prompts have `assumed` tokens, and each item of a scored task is one text.
    """
    docs = task.test_docs(limit)
    looked_at = task.asked(docs[:SAMPLED_TEST_ITEMS], renderer) if renderer is not None else []
    if task.generates:
        longest = assumed if renderer is None else renderer.longest_prompt(looked_at)
        return CellRequests(len(docs), int(task.generation.get("n", 1)), longest, int(task.generation["max_gen_toks"]))
    texts = ["".join(map(str, request)) for asked in looked_at for request in json.loads(asked)]
    longest = assumed if renderer is None else max(map(len, renderer.encode_prompts(texts)), default=0)
    of_item = len(texts) / len(looked_at) if looked_at else 1.0
    return CellRequests(round(len(docs) * of_item), 1, longest, 0)


def evaluation_needs(
    cells: Mapping[str, CellRequests], student: ModelShape, batch: int, width: int, generates: bool = True
) -> StageNeeds:
    """Return what one evaluation of all cells needs at most.

    `batch` sequences are answered at a time, in numbers of `width` bytes; `generates` says whether this process answers,
    rather than another engine. lm-eval scores texts in this process: it keeps the logits of a batch and their logarithms.
    """
    answered, scored = [[cell for cell in cells.values() if bool(cell.budget) is kind] for kind in (True, False)]
    rows = {cell: min(batch, cell.requests * cell.answers) for cell in cells.values()}
    own = answered if generates else []
    cached = max((rows[cell] * (cell.prompt + cell.budget) for cell in own), default=0)
    read = max((min(batch, cell.requests) * cell.prompt for cell in (*own, *scored)), default=0)
    parts = {
        "weights": width * student.parameters if own or scored else 0,
        "activations": width * read * (elements_of_layer(student) + student.hidden),
        "logits": 2 * 4 * student.vocabulary * max((rows[cell] * cell.prompt for cell in scored), default=0),
        "key-value cache": width * cached * student.layers * 2 * student.keys,
        "sampling": 3 * 4 * student.vocabulary * max((rows[cell] for cell in own), default=0),
    }
    tokens = sum(cell.requests * cell.answers * cell.budget for cell in answered)
    flops = 2.0 * student.parameters * (tokens + sum(cell.requests * cell.prompt for cell in cells.values()))
    return StageNeeds(parts, sum(parts.values()), tokens, flops)
