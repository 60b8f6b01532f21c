"""Digests of what decides a grade: the grader's source, its settings, and the references that it compares answers with.

Next to them are digests of the rest of a task, by which a run that continues sees that a task's file was edited.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.base import digest
from harness.lm.rollouts import Example
from harness.lmeval.task import Task

_PROMPTING = (
    *("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "num_fewshot", "fewshot_config"),
    *("fewshot_delimiter", "target_delimiter", "gen_prefix", "generation_kwargs"),
)


def grader_source(task: Task) -> str:
    """Return a hash of what decides a grade besides the references: the grader's package, filters and metrics."""
    config = task.config
    own = str(_plain(config.process_results)) if callable(config.process_results) else ""
    parts = [own, *(str(_plain(listed)) for listed in (config.filter_list, config.metric_list)), task.metric]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def references(task: Task, docs: Sequence[dict[str, Any]]) -> list[str]:
    """Return, as a list of one, the digest of the references and choices that lm-eval's own grading compares answers with.

    The list is empty for a task with a `process_results` of its own, which reads the documents themselves.
    """
    if callable(task.config.process_results):
        return []
    choices = [task.choices(doc) for doc in docs] if task.config.doc_to_choice is not None else []
    return [digest([[task.reference(doc) for doc in docs], choices])]


def settings_digest(task: Task) -> str:
    """Return the digest of what decides a task's prompts, targets, decoding and grades, besides its records."""
    prompting = {name: _plain(getattr(task.config, name)) for name in _PROMPTING}
    return digest([prompting, _plain(task.settings.model_dump()), task.filter_name, grader_source(task)])


def items_digest(examples: Iterable[Example]) -> str:
    """Return the digest of training items as they are rendered: the token ids of each prompt and target, in order."""
    found = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt, example.target):
            found.update(len(ids).to_bytes(8, "little") + np.asarray(ids, dtype="<i8").tobytes())
    return found.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a setting with every function as its name and the hash of its source; Python would print its address."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if not callable(value):
        return value
    # lm-eval names the module of a function in a file by the file's path, which is another one on another machine.
    name = f"{Path(str(value.__module__)).name}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return [name, hashlib.sha256(_package_source(value).encode()).hexdigest()]


def _package_source(function: Any) -> str:
    """Return the source of all modules in a function's top package, because graders share helpers."""
    module = str(function.__module__)
    try:
        file = Path(inspect.getfile(function))
    except TypeError:  # builtins and plain values have no file
        return module
    depth = module.count(".") if not Path(module).is_absolute() else 0
    folder = file.parents[depth - 1] if depth else file.parent
    return "\0".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
