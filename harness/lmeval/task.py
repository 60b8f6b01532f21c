"""Tasks as lm-eval defines them: the same code renders prompts and grades answers in training and in evaluation.

Training prompts come from the task's `training_split`, through the same `doc_to_text` and chat template as its test prompts;
references come from `doc_to_target` (or `metadata.harness.training_target`), grades from `process_results`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.utils import maybe_delimit

from harness.errors import HarnessError, TaskError
from harness.lm.chat import Renderer
from harness.lm.rollouts import Example
from harness.lmeval.documents import fill_field, item_id, read_docs
from harness.lmeval.failures import grading_failed, rendering_failed
from harness.lmeval.score import aggregates, can_be_score, item_value, score_of
from harness.lmeval.task_definition import TaskDefinition

TINY = 1e-6  # a score may be outside 0..1 by rounding
Text = tuple[str, str]  # a question and its answer
FEWSHOT_SEED = 1234  # lm-eval's default; an evaluation's seed does not change the few-shot examples


class Task(TaskDefinition):
    """One lm-eval task as the harness uses it: its prompts, its training items and its grades."""

    @cached_property
    def _examples(self) -> dict[tuple[str, int | None], list[Example]]:
        """Rendered training items, by renderer and limit."""
        return {}

    @cached_property
    def _shown(self) -> dict[str, list[dict[str, Any]]]:
        """The few-shot examples in the prompt of each rendered training item, by `item_id`."""
        return {}

    def under(self, profile: str, pass_at: Sequence[int] = (), grader: str = "") -> Task:
        """Return a copy for another profile or grader, with generation settings of its own; data and functions are shared."""
        twin = copy.copy(self.lmeval)
        twin._config = copy.copy(self.lmeval.config)
        twin.set_config("generation_kwargs", copy.deepcopy(self.lmeval.config.generation_kwargs))
        # With lm-eval's `repeats` a grader gets nested lists; a profile's `n` draws several answers instead.
        twin.set_config("repeats", 1)
        return Task(self.name, twin, profile, pass_at, grader, self.filter_name)

    def through(self, filter_name: str) -> Task:
        """Return a copy that grades answers through another of the task's filters."""
        return Task(self.name, self.lmeval, self.profile, self.pass_at, self.grader, filter_name)

    def prompt_text(self, doc: Mapping[str, Any]) -> str:
        """Return a document's own text, without description, few-shot examples and chat template.

        If a document has several contexts (`doc_to_text` is an index), they are joined, one per line.
        """
        text = self.lmeval.doc_to_text(doc)
        return "\n".join(self.choices(doc)) if isinstance(text, int) else str(text)

    def reference(self, doc: Mapping[str, Any]) -> str:
        """Return the value of `doc_to_target` as text: an index as its digits, a list as Python prints it."""
        return str(self.lmeval.doc_to_target(dict(doc)))

    def target_text(self, doc: Mapping[str, Any]) -> str:
        """Return the right answer as text: the first of a list, or the choice that an index points to."""
        target = self.lmeval.doc_to_target(dict(doc))
        target = target[0] if isinstance(target, list) else target
        choices = self.choices(doc) if isinstance(target, int) else []
        return choices[int(target)] if choices else str(target)

    def choices(self, doc: Mapping[str, Any]) -> list[str]:
        """Return a document's choices; empty for a task without `doc_to_choice`."""
        if self.config.doc_to_choice is None:
            return []
        return [str(choice) for choice in self.lmeval.doc_to_choice(dict(doc))]

    def render(self, doc: dict[str, Any], renderer: Renderer) -> str:
        """Return a document's prompt, the text that lm-eval sends to the model; raises `TaskError` for several contexts."""
        context = self._context(doc, renderer)
        if not isinstance(context, str):
            raise TaskError(f"task {self.name} has several prompts for one item; a stage needs one")
        return context

    def render_question(self, doc: dict[str, Any], question: str, renderer: Renderer) -> str:
        """Return a document's prompt with `question` as its own text; description, examples and `gen_prefix` stay.

        The examples are those of `training_examples`; for a document that is not among them, the next that lm-eval draws.
        """
        twin: Any = copy.copy(self.lmeval)
        own = self.lmeval.doc_to_text
        twin.doc_to_text = lambda other, *template: question if other is doc else own(other, *template)
        if (shown := self._shown.get(item_id(doc))) is not None:
            twin.sampler = SimpleNamespace(sample=lambda *_, **__: shown)
        return Task(self.name, twin, filter_name=self.filter_name).render(doc, renderer)

    def own_examples(self, docs: Sequence[dict[str, Any]]) -> int:
        """Return for how many documents the few-shot prompt shows the document itself, with its answer, as an example."""
        if not (shots := self.config.num_fewshot):
            return 0
        self.lmeval.set_fewshot_seed(FEWSHOT_SEED)
        apart = self.lmeval.fewshot_cfg.split == self.config.test_split  # then lm-eval leaves the item out
        return sum(doc in self.lmeval.sampler.sample(n=shots, eval_doc=doc if apart else None) for doc in docs)

    def asked(self, docs: Sequence[dict[str, Any]], renderer: Renderer) -> list[str]:
        """Return what a model is asked about each document: the prompt, or, as JSON, every context with its continuation.

        Few-shot examples are the same as in the evaluation, whatever was rendered before.
        """
        self.lmeval.set_fewshot_seed(FEWSHOT_SEED)
        if self.generates:
            return [self.render(doc, renderer) for doc in docs]
        return [json.dumps(self._requests(doc, renderer), default=str, ensure_ascii=False) for doc in docs]

    def _requests(self, doc: dict[str, Any], renderer: Renderer) -> list[Any]:
        made = self.lmeval.construct_requests(
            doc,
            self._context(doc, renderer),
            metadata=(self.name, 0, 1),
            apply_chat_template=renderer.has_template,
            chat_template=renderer.render if renderer.has_template else None,
        )
        return [request.args for request in (made if isinstance(made, list) else [made])]

    def _context(self, doc: dict[str, Any], renderer: Renderer) -> Any:
        try:
            return self.lmeval.fewshot_context(
                doc,
                num_fewshot=self.config.num_fewshot or 0,
                apply_chat_template=renderer.has_template,
                fewshot_as_multiturn=True,
                chat_template=renderer.render if renderer.has_template else None,
                gen_prefix=self.lmeval.doc_to_prefix(doc),
            )
        except HarnessError as error:
            raise type(error)(f"task {self.name}: {error}") from error
        except Exception as error:
            raise rendering_failed(self.name, doc, error) from error

    def training_target(self, doc: dict[str, Any]) -> str:
        """Return the text that a supervised learner is trained on.

        It is the field or template that `metadata.harness.training_target` names, else `target_text`.
        """
        field = self.settings.training_target
        return self.target_text(doc) if field is None else str(fill_field(field, doc))

    def cluster(self, doc: Mapping[str, Any]) -> str:
        """Return the cluster of a document: answers to documents of one cluster may be right or wrong together.

        `metadata.harness.cluster` is a field, a template or a function of the document. Without it, or where its value is
        empty, the document is its own cluster, named by its `item_id`.
        """
        named = self.settings.cluster
        value = None if named is None else named(doc) if callable(named) else fill_field(named, doc)
        return item_id(doc) if value is None or value == "" else str(value)

    @property
    def has_training_split(self) -> bool:
        """Whether the task's file names a training split, which may be empty on this machine."""
        return bool(self.lmeval.has_training_docs())

    @property
    def has_training_items(self) -> bool:
        """Whether the task's training split has items on this machine."""
        return self.has_training_split and len(self.lmeval.training_docs()) > 0

    def training_docs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first `limit` training documents, all for None; raises `TaskError` for a task without any."""
        if not self.has_training_split:
            raise TaskError(f"task {self.name} has no `training_split`; a stage and a warm-up need one")
        found = read_docs(self.lmeval.training_docs(), limit)
        if not found:
            raise TaskError(f"task {self.name} has an empty training split; name its records under `data`")
        return found

    def training_texts(self) -> list[Text]:
        """Return the question and the answer of every training document, without a chat template."""
        return [(self.prompt_text(doc), self.training_target(doc)) for doc in self.training_docs()]

    def training_examples(self, renderer: Renderer, limit: int | None = None) -> list[Example]:
        """Return training items as token ids, in the task's order; each renderer and limit is rendered once."""
        key = (renderer.identity, limit)
        if key not in self._examples:
            self._examples[key] = self._rendered(self.training_docs(limit), renderer)
        return self._examples[key]

    def training_prompts(self, renderer: Renderer, limit: int | None = None) -> list[str]:
        """Return the prompts of `training_examples` as text; raises `TaskError` for an item whose target cannot be read."""
        self.lmeval.set_fewshot_seed(FEWSHOT_SEED)
        return [self._texts(doc, renderer)[0] for doc in self.training_docs(limit)]

    def test_docs(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the first `limit` documents of the split that evaluation uses, all for None."""
        return read_docs(self.lmeval.eval_docs, limit)

    def grade(self, doc: dict[str, Any], response: str) -> dict[str, float]:
        """Return all metrics of one response, by the task's filter and `process_results`.

        Raises `TaskError` where the grader fails.
        """
        request = Instance("generate_until", doc, ("", {}), 0, metadata=(self.name, 0, 1), resps=[response])
        pipeline = self.lmeval._filters[self.filters.index(self.filter_name)]
        try:
            pipeline.apply([request])
            return dict(self.lmeval.process_results(doc, [request.filtered_resps[pipeline.name]]))
        except HarnessError:
            raise
        except Exception as error:
            raise grading_failed(self.name, doc, error) from error

    def grade_even(self, doc: dict[str, Any], renderer: Renderer) -> dict[str, Any]:
        """Return the metrics that a document would have if all its choices were equally likely; no model is asked.

        It shows which metrics a task that is scored by likelihoods has for one item, not their values.
        """
        likelihoods: list[Any] = [(-1.0, False)] * len(self._requests(doc, renderer))
        try:
            even = [-1.0] if self.output_type == "loglikelihood_rolling" else likelihoods
            return dict(self.lmeval.process_results(doc, even))
        except Exception as error:
            raise grading_failed(self.name, doc, error) from error

    def score(self, grades: Mapping[str, Any]) -> float:
        """Return an item's score by the primary metric, 0..1; raises `TaskError` where its value is not in that range."""
        values = self.item_values(grades)
        score = score_of(self.metric, values[self.metric]) if self.metric in values else math.nan
        if -TINY <= score <= 1 + TINY:
            return score
        got = f"{score:g}" if self.metric in values else f"{grades.get(self.metric)!r:.60}"
        others = [name for name in can_be_score(self.higher_is_better) if 0 <= values.get(name, -1) <= 1]
        advice = (
            f"name {' or '.join(others)} in metadata.harness.metric" if others else "write a process_results for it"
        )
        raise TaskError(
            f"{self.source or f'task {self.name}'}: its grader gave {got} for {self.metric!r} of one item, expected a number "
            f"from 0 to 1, because scores are compared as shares; {advice}"
        )

    def item_values(self, grades: Mapping[str, Any]) -> dict[str, float]:
        """Return one item's metrics as numbers in their own units; metrics without a value for one item are left out."""
        values = {name: item_value(self.lmeval, name, value) for name, value in grades.items()}
        return {name: value for name, value in values.items() if value is not None}

    def aggregates(self, grades: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Return the figures that are not means over items, see `harness.lmeval.score.aggregates`."""
        return aggregates(self.lmeval, grades)

    def _rendered(self, docs: list[dict[str, Any]], renderer: Renderer) -> list[Example]:
        self.lmeval.set_fewshot_seed(FEWSHOT_SEED)
        texts, targets = zip(*(self._keeping_shown(doc)._texts(doc, renderer) for doc in docs), strict=True)
        ids = renderer.encode_prompts(texts), renderer.encode_targets(targets, after=texts)
        return [
            Example(self.name, item_id(doc), doc, prompt, target)
            for doc, prompt, target in zip(docs, *ids, strict=True)
        ]

    def _keeping_shown(self, doc: dict[str, Any]) -> Task:
        """Return a copy that keeps the few-shot examples that lm-eval draws for a document."""
        if not self.config.num_fewshot:
            return self
        twin: Any = copy.copy(self.lmeval)
        own = self.lmeval.sampler

        def sample(*args: Any, **options: Any) -> list[dict[str, Any]]:
            self._shown[item_id(doc)] = found = list(own.sample(*args, **options))
            return found

        twin.sampler = SimpleNamespace(sample=sample)
        return Task(self.name, twin, self.profile, self.pass_at, self.grader, self.filter_name)

    def _texts(self, doc: dict[str, Any], renderer: Renderer) -> tuple[str, str]:
        text = self.render(doc, renderer)
        return text, self._delimited(doc, self.training_target(doc), renderer.has_template)

    def _delimited(self, doc: dict[str, Any], target: str, has_template: bool) -> str:
        """Return a target with the delimiter that lm-eval puts before it in few-shot examples.

        After a `gen_prefix` that is one space, unless there is one. Without it, a chat template ends the prompt itself, and
        plain text gets the task's `target_delimiter`.
        """
        if prefix := self.lmeval.doc_to_prefix(doc):
            return maybe_delimit(prefix, target, delimiter=" ")[len(prefix) :]
        return target if has_template else f"{self.config.target_delimiter}{target}"
