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

from harness.config import digest
from harness.lmeval.tasks import BenchTask, item_id

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
    task: BenchTask,
    docs: Sequence[dict[str, Any]],
    prompts: Sequence[str],
    weights: str,
    seed: int,
    backend: dict[str, Any],
) -> Keys:
    """Return the keys of `task` on a model with digest `weights`.

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
    return Keys(digest({**shared, "weights": weights, "seed": seed}), grading, digest(fields), fields)


def grading_key(task: BenchTask, docs: Sequence[dict[str, Any]]) -> str:
    """Return the digest of what makes grades of answers: the grader, its primary metric, the references, each pass@k."""
    parts: list[Any] = [grader_source(task), [item_id(doc) for doc in docs]]
    return digest([*parts, list(task.pass_at)] if task.pass_at else parts)


def grader_source(task: BenchTask) -> str:
    """Return a hash of what decides a grade beside the references: the grader's package, filters and metrics."""
    grader = task.task.config.process_results
    source = ""
    if callable(grader):
        source = _package_source(Path(inspect.getfile(grader)), grader.__module__)
    parts = [source, str(task.task.config.filter_list), str(task.task.config.metric_list), task.metric]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _package_source(file: Path, module: str) -> str:
    """Return the source of all modules in the grader's top package, since graders share helpers."""
    depth = module.count(".") if not Path(module).is_absolute() else 0
    folder = file.parents[depth - 1] if depth else file.parent
    return "\0".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
