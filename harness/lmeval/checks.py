"""What must hold before time is spent: complete generation settings, prompts that fit, graders that can tell.

Each finding is one sentence; `traps` lists what a task file falls into, with what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config.evaluation import Decoding
from harness.config.suite import Stage, Suite
from harness.errors import TaskError
from harness.lm.chat import Renderer
from harness.lmeval.score import can_be_score
from harness.lmeval.task import Task, item_id
from harness.lmeval.task_files import LOCAL_FORMATS, read_task_file

REQUIRED = ("until", "temperature", "max_gen_toks")


@dataclass(frozen=True)
class GradeCheck:
    """How a task grades a reference and spoiled copies of it; `reference` must be 1 and `spoiled` 0."""

    prompt: str
    target: str
    reference: float
    spoiled: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether the grader tells right from wrong."""
        return self.reference == 1 and all(score == 0 for score in self.spoiled.values())


def settle_generation(task: Task, decoding: Decoding, n: int = 1) -> None:
    """Lay a suite's decoding over the task's and raise `TaskError` when a setting that decides answers is missing.

    lm-eval fills the gaps silently, and differently for its model classes. `n` is the number of answers of each item.
    """
    if task.metric not in task.graders:
        raise TaskError(
            f"{task.source or task.name}: metadata.harness.metric is {task.metric!r}, expected one of metric_list: "
            f"{', '.join(task.graders)}"
        )
    fitting = can_be_score(task.higher_is_better)
    if task.metric not in fitting:
        raise TaskError(
            f"{task.source or task.name}: lower is better in {task.metric!r}, and a fall of it would be shown as a loss; "
            f"name another in metadata.harness.metric ({', '.join(fitting) or 'none of its metrics fits'})"
        )
    if not task.generates:
        return
    changes = decoding.model_dump(exclude_none=True, mode="json")
    stated = {**stated_generation(task), **changes}
    if missing := [name for name in REQUIRED if name not in stated]:
        raise TaskError(
            f"{task.source or task.name}: generation_kwargs lack {', '.join(missing)}; expected until, temperature and "
            "max_gen_toks, in the task or under the suite's `evaluation.decoding`"
        )
    if n > 1 and not (stated["temperature"] and stated.get("do_sample", True)):
        raise TaskError(
            f"task {task.name}: profile {task.profile or 'of the suite'} asks for {n} answers of each item and decoding is "
            "greedy, which gives the same one each time; set the profile's temperature above 0"
        )
    task.set_decoding(changes if n == 1 else {**changes, "n": n})


def stated_generation(task: Task) -> dict[str, Any]:
    """Return the generation settings that the task's file really states, without lm-eval's defaults."""
    if task.source is None:
        return task.generation
    return dict(read_task_file(task.source).get("generation_kwargs") or {})


def check_stage_task(task: Task) -> None:
    """Raise `TaskError` for a task that cannot be a stage: it must generate and have training items."""
    if not task.generates:
        raise TaskError(f"task {task.name} is {task.output_type}; a stage needs generate_until (probes may be any)")
    task.training_docs(1)


def check_fits(task: Task, prompts: Sequence[list[int]], answer_tokens: int, context: int, where: str) -> None:
    """Raise `TaskError` when the longest prompt and its answer exceed the context, which would be cut silently."""
    longest = max(map(len, prompts), default=0)
    if longest + answer_tokens > context:
        raise TaskError(
            f"task {task.name}: its longest {where} prompt has {longest} tokens and an answer may take {answer_tokens}, "
            f"more than the model's context of {context}; lower the answer budget or take a model with more context"
        )


def check_test_prompts(tasks: Iterable[Task], renderer: Renderer, context: int, limit: int | None) -> None:
    """Check every test prompt that a model will answer, and every one with a continuation that it will score."""
    for task in tasks:
        if task.generates:
            prompts = [renderer.encode_prompt(task.render(doc, renderer)) for doc in task.test_docs(limit)]
            check_fits(task, prompts, task.generation["max_gen_toks"], context, "test")
        elif task.output_type != "loglikelihood_rolling":  # which is scored in windows
            _check_scored(task, renderer, context, limit)


def _check_scored(task: Task, renderer: Renderer, context: int, limit: int | None) -> None:
    requests = [request for asked in task.asked(task.test_docs(limit), renderer) for request in json.loads(asked)]
    # A token is a byte of text or more, so that few need a tokenizer; the last one is predicted and never read.
    long = [text for request in requests if len((text := "".join(request)).encode()) > context + 1]
    longest = max((len(renderer.tokenizer.encode(text, add_special_tokens=False)) for text in long), default=0)
    if longest > context + 1:
        raise TaskError(
            f"task {task.name}: its longest test prompt with a continuation has {longest} tokens, more than the model's "
            f"context of {context} scores; ask for fewer few-shot examples, or take a model with more context"
        )


def check_prompts(
    suite: Suite, stages: Iterable[Stage], tasks: dict[str, Task], renderer: Renderer, context: int, entry: str
) -> None:
    """Check every test prompt, and the stages' training prompts under one adapter entry, against a context."""
    check_test_prompts(tasks.values(), renderer, context, suite.evaluation.limit)
    for stage in stages:
        training = suite.training_for(stage, entry)
        for name in stage.trains:
            prompts = [e.prompt for e in tasks[name].training_examples(renderer, training.train_items)]
            check_fits(tasks[name], prompts, training.max_new_tokens, context, "training")


def check_grader(task: Task, doc: dict[str, Any], renderer: Renderer) -> GradeCheck:
    """Grade an item's reference and spoiled copies of it."""
    target = task.training_target(doc)
    scores = {
        name: task.grade(doc, text)[task.metric] for name, text in {"empty": "", "changed": spoil(target)}.items()
    }
    return GradeCheck(task.render(doc, renderer), target, task.grade(doc, target)[task.metric], scores)


def spoil(target: str) -> str:
    """Return a wrong copy of a reference: every digit raised by one, and its last word changed where that has no digit.

    The last word is where an answer stands: in a worked solution that ends in a box with pi, digits alone decide nothing.
    """
    raised = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), target)
    if raised == target:
        return _changed_words(target) + "x"
    *_, last = re.finditer(r"\S*[A-Za-z0-9]\S*", raised)
    if re.search(r"\d", last[0]):
        return raised
    return raised[: last.start()] + _changed_words(last[0]) + raised[last.end() :]


def _changed_words(text: str) -> str:
    return re.sub(r"[A-Za-z]+", lambda word: word[0][::-1] + "x", text)


def traps(task: Task) -> Iterator[str]:
    """Yield a sentence for each known trap that a task's file falls into."""
    yield from _generation_traps(task)
    yield from _scoring_traps(task)
    yield from _data_traps(task)


def shared_items(task: Task, limit: int | None = None) -> int:
    """Return how many test prompts are also training prompts, word for word."""
    if not task.has_training_items:
        return 0
    train = set(map(task.prompt_text, task.training_docs()))
    return sum(task.prompt_text(doc) in train for doc in task.test_docs(limit))


def _generation_traps(task: Task) -> Iterator[str]:
    if not task.generates:
        yield f"output_type is {task.output_type}: usable as a probe only, a stage needs generate_until"
        return
    stated = stated_generation(task)
    for name in (*REQUIRED, "do_sample"):
        if name not in stated:
            yield f"generation_kwargs lack {name}: lm-eval's hf and vllm classes fill it differently; state it"
    if stated.get("do_sample") and not stated.get("temperature"):
        yield "do_sample is true with temperature 0: backends read this differently; set one of them"
    if task.config.repeats != 1:
        yield "repeats keeps the first answer only; ask for samples in the suite instead"


def _scoring_traps(task: Task) -> Iterator[str]:
    if "metric" not in task.settings:
        yield f"metadata.harness.metric is not set: {task.metric} is taken as the score"
    for entry in task.config.metric_list or []:
        for key in ("aggregation", "higher_is_better"):
            if key not in entry:
                yield f"metric {entry.get('metric')} does not state {key}: lm-eval guesses it with a warning"
    target = task.lmeval.doc_to_target(task.test_docs(1)[0])
    if not isinstance(target, str) and "training_target" not in task.settings:
        yield f"doc_to_target gives {type(target).__name__}, not text: set metadata.harness.training_target for training"
    if task.config.num_fewshot:
        yield f"num_fewshot is {task.config.num_fewshot}: training prompts carry the same examples"


def _data_traps(task: Task) -> Iterator[str]:
    config = task.config
    if (
        config.dataset_path
        and config.dataset_path not in LOCAL_FORMATS
        and not callable(config.custom_dataset)
        and "revision" not in (config.dataset_kwargs or {})
    ):
        yield "dataset_kwargs.revision is not pinned: the data may change under the results"
    if task.has_training_split and not task.has_training_items:
        yield "the training split is empty here: usable as a probe only, until its records are named under `data`"
    if task.settings.get("memorise"):
        yield "metadata.harness.memorise is set: it trains on its test items on purpose, for plumbing checks only"
    elif shared := shared_items(task):
        yield f"{shared} test prompts are also training prompts: scores measure memory"
    ids = [item_id(doc) for doc in task.test_docs()]
    if len(set(ids)) < len(ids):
        yield f"{len(ids) - len(set(ids))} test items are duplicates: intervals would count them twice"
