"""Three keys that say when evaluation results may be reused, graded again, or put in one matrix.

Generation: what decides the answers. Grading: what decides their grades. Comparability: both, without weights and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from harness.config.base import digest
from harness.lm.seeding import DRAWS
from harness.lmeval.documents import item_id
from harness.lmeval.grader_source import grader_source, references
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import Keys

PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers")


def make_keys(
    task: Task,
    docs: Sequence[dict[str, Any]],
    prompts: Sequence[str],
    weights: str,
    config: str,
    seed: int,
    backend: dict[str, Any],
) -> Keys:
    """Return the keys of `task` on a model with digests `weights` and, of its configuration, `config`.

    `docs` hold the references, `backend` names engine, device, dtype, batch size and stop tokens.
    """
    shared = {
        "task": task.name,
        "prompts": digest(list(prompts)),
        "settings": task.generation,
        "backend": backend,
        "versions": {name: version(name) for name in PACKAGES},
    }
    grading = grading_key(task, docs)
    fields = {**shared, "grading": grading}
    draws = {"draws": DRAWS} if task.generation.get("temperature") else {}
    generation = digest({**shared, **draws, "weights": weights, "config": config, "seed": seed})
    return Keys(generation=generation, grading=grading, comparability=digest(fields), fields=fields)


def grading_key(task: Task, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of what makes the grades of a cell's rows: grader, primary metric, references, pass@k, clusters."""
    parts: list[Any] = [grader_source(task), [item_id(doc) for doc in docs], *references(task, docs)]
    if task.pass_at:
        parts.append(list(task.pass_at))
    if task.filter_name != task.filters[0]:
        parts.append({"filter": task.filter_name})
    if task.settings.cluster is not None:
        parts.append({"clusters": [task.cluster(doc) for doc in docs]})
    return digest(parts)
