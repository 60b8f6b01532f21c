"""What must hold before time is spent on a run: tasks that can be stages, and prompts that fit the model's context."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from harness.config.run_spec import RunSpec
from harness.errors import TaskError
from harness.lm.chat import Renderer
from harness.lmeval.task import Task


def check_stage_task(task: Task) -> None:
    """Raise `TaskError` for a task that cannot be a stage: it must generate and have training items."""
    if not task.generates:
        raise TaskError(f"task {task.name} is {task.output_type}; a stage needs generate_until (probes may be any)")
    task.training_docs(1)


def check_fits(task: Task, lengths: Sequence[int], answer_tokens: int, context: int, where: str) -> None:
    """Raise `TaskError` when the longest prompt and its answer exceed the context, which would be cut silently."""
    longest = max(lengths, default=0)
    if longest + answer_tokens > context:
        raise TaskError(
            f"task {task.name}: its longest {where} prompt has {longest} tokens and an answer may take {answer_tokens}, "
            f"more than the model's context of {context}; lower the answer budget or take a model with more context"
        )


def check_test_prompts(tasks: Iterable[Task], renderer: Renderer, context: int, limit: int | None) -> None:
    """Check every test prompt that a model will answer, and every one with a continuation that it will score."""
    for task in tasks:
        if task.generates:
            prompts = [task.render(doc, renderer) for doc in task.test_docs(limit)]
            check_fits(task, renderer.prompt_lengths(prompts), task.generation["max_gen_toks"], context, "test")
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


def check_prompts(spec: RunSpec, tasks: dict[str, Task], renderer: Renderer, context: int) -> None:
    """Check every test prompt, and the training prompts of a run's stages, against a context."""
    check_test_prompts(tasks.values(), renderer, context, spec.suite.evaluation.limit)
    for stage in spec.stages:
        for name in stage.trains:
            prompts = tasks[name].training_prompts(renderer, stage.training.train_items)
            check_fits(
                tasks[name], renderer.prompt_lengths(prompts), stage.training.max_new_tokens, context, "training"
            )
