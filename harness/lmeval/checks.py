"""Checks before a run: its tasks can be stages, its prompts fit the model's context, and its references are whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

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


def check_test_prompts(
    tasks: Iterable[Task], renderer: Renderer, context: int, beyond_context: int, limit: int | None
) -> None:
    """Raise `TaskError` for a test prompt that does not fit a context of `context` tokens with its answer or continuation.

    With a continuation it may have `beyond_context` tokens more, see `BackendSettings`. Profiles of one task differ only in
    their length limits of answers, so its prompts are rendered once.
    """
    prompts: dict[str, list[str]] = {}
    for task in tasks:
        if task.generates:
            if task.name not in prompts:
                prompts[task.name] = [task.render(doc, renderer) for doc in task.test_docs(limit)]
            answer = task.generation["max_gen_toks"]
            _refuse_long(task, renderer.longest_prompt(prompts[task.name], context - answer), answer, context, "test")
        elif task.output_type != "loglikelihood_rolling":  # which is scored in windows
            _check_scored(task, renderer, context, beyond_context, limit)


def check_training_prompts(spec: RunSpec, tasks: Mapping[str, Task], context: int, longest: Longest) -> None:
    """Raise `TaskError` for a training prompt of a run's stages that does not fit `context` tokens with its response."""
    for stage in spec.stages:
        training = stage.training
        for task in (tasks[name] for name in stage.trains):
            found = longest(task, training.train_items, context - training.max_new_tokens)
            _refuse_long(task, found, training.max_new_tokens, context, "training")


def cut_references(
    spec: RunSpec, stages: Collection[str], tasks: Mapping[str, Task], renderer: Renderer, at_most: int | None = None
) -> Iterator[str]:
    """Yield a sentence for each task of some `stages`, which train on references, with references that are cut.

    A reference longer than `training.max_new_tokens` is trained on without its end. `at_most` limits the items looked at.
    """
    for stage in (stage for stage in spec.stages if stage.name in stages):
        training = stage.training
        limits = [limit for limit in (training.train_items, at_most) if limit is not None]
        for name in stage.trains:
            lengths = [len(e.target) for e in tasks[name].training_examples(renderer, min(limits, default=None))]
            if cut := sum(length > training.max_new_tokens for length in lengths):
                yield (
                    f"stage {stage.name} trains on references, and {cut} of {len(lengths)} of {name} "
                    f"({cut / len(lengths):.2%}) are cut at training.max_new_tokens, {training.max_new_tokens}, without "
                    f"their end; the longest has {max(lengths)} tokens, so raise it, or leave long references out of the task"
                )


def _refuse_long(task: Task, longest: int, answer_tokens: int, context: int, where: str) -> None:
    """Raise `TaskError` when the longest prompt and its answer exceed the context, which would be cut silently."""
    if longest + answer_tokens > context:
        raise TaskError(
            f"task {task.name}: its longest {where} prompt has {longest} tokens and an answer may take {answer_tokens}, "
            f"more than the model's context of {context}; lower the answer budget or take a model with more context"
        )


def _check_scored(task: Task, renderer: Renderer, context: int, beyond_context: int, limit: int | None) -> None:
    room = context + beyond_context
    requests = [request for asked in task.asked(task.test_docs(limit), renderer) for request in json.loads(asked)]
    long = [text for request in requests if renderer.most_ids(text := "".join(request)) > room]
    longest = max((len(renderer.tokenizer.encode(text, add_special_tokens=False)) for text in long), default=0)
    if longest > room:
        raise TaskError(
            f"task {task.name}: its longest test prompt with a continuation has {longest} tokens, more than the {room} that "
            f"the model's context of {context} scores; ask for fewer few-shot examples, or take a model with more context"
        )
