"""Checks before a run: its tasks can be stages, and its prompts fit the model's context."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from harness.config.run_spec import RunSpec
from harness.errors import TaskError
from harness.lm.chat import Renderer
from harness.lmeval.task import Task

# Returns the tokens of the longest of a task's first training prompts; 0 where none is longer than the third argument.
Longest = Callable[[Task, int | None, int], int]


def check_stage_task(task: Task) -> None:
    """Raise `TaskError` for a task that cannot be a stage: it must generate and have training items."""
    if not task.generates:
        raise TaskError(f"task {task.name} is {task.output_type}; a stage needs generate_until (probes may be any)")
    task.training_docs(1)


def check_test_prompts(tasks: Iterable[Task], renderer: Renderer, context: int, limit: int | None) -> None:
    """Raise `TaskError` for a test prompt that does not fit a context of `context` tokens with its answer or continuation.

    Profiles of one task differ only in their length limits of answers, so its prompts are rendered once.
    """
    prompts: dict[str, list[str]] = {}
    for task in tasks:
        if task.generates:
            if task.name not in prompts:
                prompts[task.name] = [task.render(doc, renderer) for doc in task.test_docs(limit)]
            answer = task.generation["max_gen_toks"]
            _refuse_long(task, renderer.longest_prompt(prompts[task.name], context - answer), answer, context, "test")
        elif task.output_type != "loglikelihood_rolling":  # which is scored in windows
            _check_scored(task, renderer, context, limit)


def check_training_prompts(spec: RunSpec, tasks: Mapping[str, Task], context: int, longest: Longest) -> None:
    """Raise `TaskError` for a training prompt of a run's stages that does not fit `context` tokens with its response."""
    for stage in spec.stages:
        training = stage.training
        for task in (tasks[name] for name in stage.trains):
            found = longest(task, training.train_items, context - training.max_new_tokens)
            _refuse_long(task, found, training.max_new_tokens, context, "training")


def _refuse_long(task: Task, longest: int, answer_tokens: int, context: int, where: str) -> None:
    """Raise `TaskError` when the longest prompt and its answer exceed the context, which would be cut silently."""
    if longest + answer_tokens > context:
        raise TaskError(
            f"task {task.name}: its longest {where} prompt has {longest} tokens and an answer may take {answer_tokens}, "
            f"more than the model's context of {context}; lower the answer budget or take a model with more context"
        )


def _check_scored(task: Task, renderer: Renderer, context: int, limit: int | None) -> None:
    requests = [request for asked in task.asked(task.test_docs(limit), renderer) for request in json.loads(asked)]
    # The last token is predicted but not an input.
    long = [text for request in requests if renderer.most_ids(text := "".join(request)) > context + 1]
    longest = max((len(renderer.tokenizer.encode(text, add_special_tokens=False)) for text in long), default=0)
    if longest > context + 1:
        raise TaskError(
            f"task {task.name}: its longest test prompt with a continuation has {longest} tokens, more than the model's "
            f"context of {context} scores; ask for fewer few-shot examples, or take a model with more context"
        )
