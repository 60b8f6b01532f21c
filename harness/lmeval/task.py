"""Tasks as lm-eval defines them: one piece of code renders and grades a prompt, in training and in evaluation.

Training prompts come from the task's `training_split` through the same `doc_to_text` and chat template as its test
prompts, references from `doc_to_target` (or `metadata.harness.training_target`), grades from `process_results`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import apply_template, handle_non_serializable, hash_string

from harness.errors import TaskError
from harness.lm.chat import Renderer
from harness.lm.rollouts import Example
from harness.lmeval.score import default_metric
from harness.rundir.store import cell_name

FEWSHOT_SEED = 1234  # lm-eval's own; the seed of an evaluation is that of its draws alone


class Task:
    """One lm-eval task as the harness uses it, under one evaluation profile and one of its graders.

    `profile` is empty for the suite's first one, `grader` for the task's own; `pass_at` holds the k of each pass@k.
    """

    def __init__(
        self, name: str, task: ConfigurableTask, profile: str = "", pass_at: Sequence[int] = (), grader: str = ""
    ) -> None:
        self.name = name
        self.task = task
        self.profile = profile
        self.pass_at = tuple(pass_at)
        self.grader = grader
        self._examples: dict[tuple[str, int | None], list[Example]] = {}

    def under(self, profile: str, pass_at: Sequence[int] = (), grader: str = "") -> Task:
        """Return the task with settings of its own for another profile or grader; data and functions are shared."""
        twin = copy.copy(self.task)
        twin._config = copy.copy(self.task.config)
        twin.set_config("generation_kwargs", copy.deepcopy(self.task.config.generation_kwargs))
        # lm-eval's own repeats hand a grader nested lists; several answers are drawn by a profile's `n`.
        twin.set_config("repeats", 1)
        return Task(self.name, twin, profile, pass_at, grader)

    @property
    def cell(self) -> str:
        """The name of this task's cells."""
        return cell_name(self.name, self.profile)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What only the harness reads: `metadata.harness`."""
        metadata = self.task.config.metadata
        return dict((metadata or {}).get("harness") or {}) if isinstance(metadata, dict) else {}

    @property
    def generates(self) -> bool:
        """Whether the model writes an answer; stages need such tasks."""
        return self.task.OUTPUT_TYPE == "generate_until"

    @property
    def metric(self) -> str:
        """The primary metric: the chosen grader's, else `metadata.harness.metric`, else what `default_metric` chooses."""
        return self.grader or self.settings.get("metric") or default_metric(self.task)

    @property
    def graders(self) -> list[str]:
        """The metrics that one call of the task's `process_results` gives side by side; each can be the score."""
        return list(self.task.higher_is_better())

    @property
    def generation(self) -> dict[str, Any]:
        """The resolved generation settings of the task."""
        return dict(self.task.config.generation_kwargs or {})

    @property
    def source(self) -> Path | None:
        """The task's file, or None for a task that has none."""
        metadata = self.task.config.metadata
        name = metadata.get("config_source", "") if isinstance(metadata, dict) else ""
        return Path(name) if name.endswith(".yaml") else None

    def set_decoding(self, changes: dict[str, Any]) -> None:
        """Change generation settings on the loaded task, the only place where lm-eval merges them reliably."""
        self.task.set_config("generation_kwargs", changes, update=True)

    def render(self, doc: dict[str, Any], renderer: Renderer) -> str:
        """Return a document's prompt, the same text that lm-eval sends to the model."""
        context = self._context(doc, renderer)
        if not isinstance(context, str):
            raise TaskError(f"task {self.name} has several prompts for one item; a stage needs one")
        return context

    def asked(self, docs: Sequence[dict[str, Any]], renderer: Renderer) -> list[str]:
        """Return all that a model is asked about each document: the prompt, or every context with its continuation.

        The examples of few-shot prompts are those that the evaluation draws, whatever was rendered before.
        """
        self.task.set_fewshot_seed(FEWSHOT_SEED)
        if self.generates:
            return [self.render(doc, renderer) for doc in docs]
        return [json.dumps(self._requests(doc, renderer), default=str, ensure_ascii=False) for doc in docs]

    def _requests(self, doc: dict[str, Any], renderer: Renderer) -> list[Any]:
        made = self.task.construct_requests(
            doc,
            self._context(doc, renderer),
            metadata=(self.name, 0, 1),
            apply_chat_template=renderer.has_template,
            chat_template=renderer.render if renderer.has_template else None,
        )
        return [request.args for request in (made if isinstance(made, list) else [made])]

    def _context(self, doc: dict[str, Any], renderer: Renderer) -> Any:
        return self.task.fewshot_context(
            doc,
            num_fewshot=self.task.config.num_fewshot or 0,
            apply_chat_template=renderer.has_template,
            fewshot_as_multiturn=True,
            chat_template=renderer.render if renderer.has_template else None,
            gen_prefix=self.task.doc_to_prefix(doc),
        )

    def training_target(self, doc: dict[str, Any]) -> str:
        """Return the text that a supervised learner is trained on.

        `metadata.harness.training_target` names a field or a template; else it is `doc_to_target`, a list's first entry
        or the choice that an index points to.
        """
        field = self.settings.get("training_target")
        if field is not None:
            return str(doc[field] if field in doc else apply_template(field, doc))
        target = self.task.doc_to_target(doc)
        target = target[0] if isinstance(target, list) else target
        return str(self.task.doc_to_choice(doc)[target] if isinstance(target, int) else target)

    def training_docs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the training documents; raises `TaskError` when the task has none."""
        if not self.task.has_training_docs():
            raise TaskError(f"task {self.name} has no `training_split`; a stage and a warm-up need one")
        docs = self.task.training_docs()
        found = [dict(doc) for _, doc in zip(range(limit or len(docs)), docs, strict=False)]
        if not found:
            raise TaskError(f"task {self.name} has an empty training split; say where its records are under `data`")
        return found

    def training_examples(self, renderer: Renderer, limit: int | None = None) -> list[Example]:
        """Return training items as token ids, in the task's order; rendered once, though checks and stages both ask."""
        key = (renderer.identity, limit)
        if key not in self._examples:
            self.task.set_fewshot_seed(FEWSHOT_SEED)
            self._examples[key] = [self._example(doc, renderer) for doc in self.training_docs(limit)]
        return self._examples[key]

    def test_docs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the documents that evaluation uses."""
        return [dict(doc) for _, doc in self.task.doc_iterator(limit=limit)]

    def grade(self, doc: dict[str, Any], response: str) -> dict[str, float]:
        """Return all metrics of one response, through the task's first filter and its `process_results`."""
        request = Instance("generate_until", doc, ("", {}), 0, metadata=(self.name, 0, 1), resps=[response])
        pipeline = self.task._filters[0]
        pipeline.apply([request])
        return dict(self.task.process_results(doc, [request.filtered_resps[pipeline.name]]))

    def _example(self, doc: dict[str, Any], renderer: Renderer) -> Example:
        prompt = renderer.encode_prompt(self.render(doc, renderer))
        # A chat template ends the prompt itself; plain text needs the delimiter that lm-eval puts before a target.
        delimiter = "" if renderer.has_template else self.task.config.target_delimiter
        target = renderer.encode_target(f"{delimiter}{self.training_target(doc)}")
        return Example(self.name, item_id(doc), doc, prompt, target)


def item_id(doc: Mapping[str, Any]) -> str:
    """Return a stable id of a document, from its content: the hash that lm-eval logs as `doc_hash`."""
    return hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False))
