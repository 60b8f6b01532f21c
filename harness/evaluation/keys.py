"""Compute the three keys that decide when results may be reused, graded again, or compared.

The generation key is the digest of what decides the answers, the grading key of what decides their grades, and the
comparability key of both, without weights and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from harness.config.base import digest
from harness.lm.seeding import DRAWS
from harness.lmeval.documents import item_id
from harness.lmeval.grader_source import grader_source, references
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import Keys

PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers")
# A run asks hundreds of times, and each time Python would parse the package's metadata.
installed_version = cache(version)


def make_keys(
    task: Task,
    docs: Sequence[dict[str, Any]],
    prompts: Sequence[str],
    weights: str,
    config: str,
    seed: int,
    backend: dict[str, Any],
) -> Keys:
    """Return the keys of a task's cell on a model with digest `weights` of its weights and `config` of its configuration.

    `docs` are the test documents, `prompts` what the model is asked about them, and `backend` its `Answering.made_with`:
    engine, device, dtype, batch size, tokenizer and stop tokens.
    """
    shared = {
        "task": task.name,
        "prompts": digest(list(prompts)),
        "settings": task.generation,
        "backend": backend,
        "versions": {name: installed_version(name) for name in PACKAGES},
    }
    grading = grading_key(task, docs)
    fields = {**shared, "grading": grading}
    draws = {"draws": DRAWS} if task.generation.get("temperature") else {}
    generation = digest({**shared, **draws, "weights": weights, "config": config, "seed": seed})
    return Keys(generation=generation, grading=grading, comparability=digest(fields), fields=fields)


def grading_key(task: Task, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of what decides the grades of a cell: grader, primary metric, references, pass@k, clusters."""
    parts: list[Any] = [grader_source(task), [item_id(doc) for doc in docs], *references(task, docs)]
    if task.pass_at:
        parts.append(list(task.pass_at))
    if task.filter_name != task.filters[0]:
        parts.append({"filter": task.filter_name})
    if task.settings.cluster is not None:
        parts.append({"clusters": [task.cluster(doc) for doc in docs]})
    return digest(parts)
