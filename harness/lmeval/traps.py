"""Name the traps in a task's file: settings that lm-eval fills in, or reads in an unexpected way.

Each is one sentence that says what to do. None stops a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.lmeval.documents import item_id
from harness.lmeval.failures import LOCAL_FORMATS
from harness.lmeval.generation_settings import REQUIRED, stated_generation
from harness.lmeval.task import Task
from harness.lmeval.trial import item_warnings


def traps(task: Task) -> Iterator[str]:
    """Yield a sentence for each known trap in a task's file."""
    yield from _generation_traps(task)
    yield from _scoring_traps(task)
    yield from _data_traps(task)
    yield from item_warnings(task)


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
    if task.settings.metric is None:
        yield f"metadata.harness.metric is not set: {task.metric} is used as the score"
    for entry in task.config.metric_list or []:
        for key in ("aggregation", "higher_is_better"):
            if key not in entry:
                yield f"metric {entry.get('metric')} does not state {key}: lm-eval guesses it with a warning"
    target = task.lmeval.doc_to_target(task.test_docs(1)[0])
    if not isinstance(target, str) and task.settings.training_target is None:
        yield f"doc_to_target gives {type(target).__name__}, not text: set metadata.harness.training_target for training"
    if task.config.num_fewshot:
        yield f"num_fewshot is {task.config.num_fewshot}: training prompts carry the same examples"


def _data_traps(task: Task) -> Iterator[str]:
    config = task.config
    if (
        config.dataset_path
        and config.dataset_path not in LOCAL_FORMATS
        and not Path(config.dataset_path).exists()
        and not callable(config.custom_dataset)
        and "revision" not in (config.dataset_kwargs or {})
    ):
        yield "dataset_kwargs.revision is not pinned: the data may change under the results"
    if task.has_training_split and not task.has_training_items:
        yield "the training split is empty here: usable as a probe only, unless its records are named under `data`"
    if task.settings.memorise:
        yield "metadata.harness.memorise is set: it trains on its test items on purpose, for plumbing checks only"
    elif shared := shared_items(task):
        yield f"{shared} test prompts are also training prompts: scores measure memory"
    ids = [item_id(doc) for doc in task.test_docs()]
    if len(set(ids)) < len(ids):
        yield f"{len(ids) - len(set(ids))} test items are duplicates: intervals would count them twice"
