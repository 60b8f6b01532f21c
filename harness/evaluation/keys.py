"""Three keys that say when evaluation results may be reused, graded anew, or put in one matrix.

Generation: what decides the answers. Grading: what decides their grades. Comparability: both, without weights and seed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.config.base import digest
from harness.lm.seeding import DRAWS
from harness.lmeval.task import Task, item_id

PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers")


@dataclass(frozen=True)
class Keys:
    """The keys of one evaluated cell, 16 hexadecimal digits each, and the fields that comparability is a digest of."""

    generation: str
    grading: str
    comparability: str
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the keys by name, as results files hold them."""
        return asdict(self)

    def regraded(self, grading: str) -> Keys:
        """Return the keys of the same answers with other grades.

        Cells of versions that recorded no fields get their old key as the one field `unrecorded`.
        """
        fields = {**(self.fields or {"unrecorded": self.comparability}), "grading": grading}
        return Keys(self.generation, grading, digest(fields), fields)


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
    made = digest({**shared, **draws, "weights": weights, "config": config, "seed": seed})
    return Keys(made, grading, digest(fields), fields)


def grading_key(task: Task, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of what makes grades of answers: the grader, its primary metric, the references, each pass@k."""
    parts: list[Any] = [grader_source(task), [item_id(doc) for doc in docs], *_references(task, docs)]
    return digest([*parts, list(task.pass_at)] if task.pass_at else parts)


def grader_source(task: Task) -> str:
    """Return a hash of what decides a grade beside the references: the grader's package, filters and metrics."""
    config = task.task.config
    source = _package_source(config.process_results) if callable(config.process_results) else ""
    parts = [source, *(str(_plain(listed)) for listed in (config.filter_list, config.metric_list)), task.metric]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _references(task: Task, docs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what lm-eval's own grading compares with; a `process_results` of the task reads documents, which are known."""
    if callable(task.task.config.process_results):
        return []
    choices = [task.task.doc_to_choice(doc) for doc in docs] if task.task.config.doc_to_choice is not None else []
    return [digest([[str(task.task.doc_to_target(doc)) for doc in docs], [list(map(str, each)) for each in choices]])]


def _plain(value: Any) -> Any:
    """Return a setting with every function by name and source: what Python prints of one is an address in memory."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if not callable(value):
        return value
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return [name, hashlib.sha256(_package_source(value).encode()).hexdigest()]


def _package_source(function: Any) -> str:
    """Return the source of all modules in a function's top package, since graders share helpers."""
    module = str(function.__module__)
    try:
        file = Path(inspect.getfile(function))
    except TypeError:  # what is built in, or no function, has no file
        return module
    depth = module.count(".") if not Path(module).is_absolute() else 0
    folder = file.parents[depth - 1] if depth else file.parent
    return "\0".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
