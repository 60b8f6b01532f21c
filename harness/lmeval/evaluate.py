"""The evaluator: one checkpoint on many tasks through lm-eval's `simple_evaluate`, in one place.

It always loads the saved checkpoint, never the model in training, and gives every random generator its state back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.evaluator import simple_evaluate

from harness.config import Chat, Evaluation
from harness.errors import TaskError
from harness.lmeval.hf_model import Ending, HarnessHFLM
from harness.lmeval.keys import Keys, make_keys
from harness.lmeval.shared import Cell, SharedCells
from harness.lmeval.tasks import BenchTask, TaskLibrary, item_id
from harness.seeding import preserved_random_state


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a saved checkpoint, the digest of its weights, and how to run it."""

    checkpoint: Path
    weights: str
    chat: Chat
    dtype: str
    device: str


def evaluate(
    subject: Subject,
    tasks: Sequence[BenchTask],
    library: TaskLibrary,
    settings: Evaluation,
    shared: SharedCells,
    on_task: Callable[[str], None] = lambda _: None,
) -> dict[str, Cell]:
    """Evaluate a checkpoint on `tasks`, by name; a cell whose keys are in `shared` is taken from there."""
    with preserved_random_state(), shared.locked(subject.weights):
        model = HarnessHFLM(
            subject.checkpoint,
            subject.chat,
            device=subject.device,
            dtype=subject.dtype,
            batch_size=settings.batch_size,
            seed=settings.seed,
            on_task=on_task,
        )
        keys = {task.name: _keys(subject, task, model, settings) for task in tasks}
        cells = {name: found for name in keys if (found := shared.get(keys[name])) is not None}
        missing = [task for task in tasks if task.name not in cells]
        for name in cells:
            on_task(name)
        for name, cell in _evaluate_tasks(model, missing, library, settings, keys, subject.weights).items():
            shared.put(keys[name], cell)
            cells[name] = cell
    return {task.name: cells[task.name] for task in tasks}


def _keys(subject: Subject, task: BenchTask, model: HarnessHFLM, settings: Evaluation) -> Keys:
    docs = task.test_docs(settings.limit)
    prompts = [task.render(doc, model.renderer) for doc in docs] if task.generates else [item_id(doc) for doc in docs]
    backend = {
        "engine": "hf",
        "device": subject.device.split(":")[0],
        "dtype": subject.dtype,
        "batch_size": settings.batch_size,
        "tokenizer": model.renderer.fingerprint(),
    }
    return make_keys(task, docs, prompts, subject.weights, settings.seed, backend)


def _evaluate_tasks(
    model: HarnessHFLM,
    tasks: Sequence[BenchTask],
    library: TaskLibrary,
    settings: Evaluation,
    keys: Mapping[str, Keys],
    weights: str,
) -> dict[str, Cell]:
    """Evaluate all tasks in one call, because each call of lm-eval also inspects the whole environment."""
    if not tasks:
        return {}
    started = time.perf_counter()
    results = simple_evaluate(
        model=model,
        tasks=[task.task for task in tasks],
        task_manager=library.manager,
        limit=settings.limit,
        apply_chat_template=model.renderer.has_template,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
    )
    if results is None or "samples" not in results:
        raise TaskError(f"lm-eval returned no samples for {', '.join(task.name for task in tasks)}")
    samples = {task.name: _samples(task, results["samples"][task.name], model.endings) for task in tasks}
    per_item = (time.perf_counter() - started) / sum(map(len, samples.values()))
    return {
        task.name: Cell(
            _summary(task, rows := samples[task.name], keys[task.name], weights, per_item * len(rows)), rows
        )
        for task in tasks
    }


def _samples(
    task: BenchTask, logged: Sequence[Mapping[str, Any]], endings: Mapping[tuple[str, int], list[Ending]]
) -> pd.DataFrame:
    """Return one row per item, of the task's first filter; ids of identical documents get a running number."""
    first_filter = logged[0]["filter"]
    seen: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for sample in (s for s in logged if s["filter"] == first_filter):
        base = item_id(sample["doc"])
        seen[base] = seen.get(base, 0) + 1
        identity = base if seen[base] == 1 else f"{base}#{seen[base]}"
        rows.append({"item_id": identity, **_row(task, sample, endings)})
    return pd.DataFrame(rows)


def _row(task: BenchTask, sample: Mapping[str, Any], endings: Mapping[tuple[str, int], list[Ending]]) -> dict[str, Any]:
    metrics = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    ending = endings.get((task.name, sample["doc_id"]), [Ending("stop", 0)])[0]
    if task.metric not in metrics:
        raise TaskError(f"task {task.name}: its grader gave {sorted(metrics)}, expected a number for {task.metric!r}")
    score = metrics[task.metric]
    return {
        "prompt": str(sample["arguments"][0][0]),
        "target": str(sample["target"]),
        "response": str(sample["resps"][0][0]) if task.generates else str(sample["resps"]),
        "finish": ending.finish,
        "tokens": ending.tokens,
        "score": score,
        "outcome": _outcome(score, metrics, ending),
        **{name: value for name, value in metrics.items() if name != "score"},
    }


def _outcome(score: float, metrics: Mapping[str, float], ending: Ending) -> str:
    """Tell apart what a plain score mixes: an answer that was cut off, could not be parsed, or was wrong."""
    if score >= 1:
        return "correct"
    if ending.finish == "length":
        return "truncated"
    return "unparsed" if metrics.get("parsed", 1.0) == 0 else "wrong"


def _summary(task: BenchTask, samples: pd.DataFrame, keys: Keys, weights: str, seconds: float) -> dict[str, Any]:
    reserved = {"item_id", "prompt", "target", "response", "finish", "tokens", "score", "outcome"}
    counts = samples["outcome"].value_counts()
    return {
        "task": task.name,
        "metric": task.metric,
        "score": float(samples["score"].mean()),
        "metrics": {str(name): float(samples[name].mean()) for name in samples.columns if name not in reserved},
        "n": len(samples),
        "outcomes": {name: int(counts.get(name, 0)) for name in ("correct", "wrong", "unparsed", "truncated")},
        "response_tokens_mean": float(samples["tokens"].mean()),
        "seconds": round(seconds, 3),
        "weights": weights,
        "keys": keys.as_dict(),
    }
