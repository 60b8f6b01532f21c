"""Evaluate one checkpoint on many tasks through lm-eval's `simple_evaluate`; the only place that calls it.

The evaluator loads the saved checkpoint, never the model in training, and restores the state of every random generator.
Stored answers are reused, and graded again where the grader changed. lm-eval's own caches are not used, because their keys
do not contain the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lm_eval import evaluator as lm_eval_evaluator
from lm_eval.evaluator import simple_evaluate

from harness.config.evaluation import Evaluation
from harness.config.models import Chat
from harness.engines.engine import CheckpointEngine
from harness.errors import HarnessError, TaskError
from harness.evaluation.answering import Answering
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.hf_model import HarnessHFLM
from harness.evaluation.keys import make_keys
from harness.evaluation.regrading import questions_digest, regrade_cell
from harness.evaluation.scoring import first_grades, sample_rows, summarise_cell
from harness.lm.checkpoints import check_weights, config_digest
from harness.lm.seeding import preserved_random_state
from harness.lmeval.failures import failed_in_a_grader
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import FEWSHOT_SEED, Task
from harness.rundir.records.cell_records import Keys


@dataclass(frozen=True)
class ServedCheckpoint:
    """A saved checkpoint, the digest of its weights, and what runs it: `engine`, or this process where that is None.

    `device` and `dtype` apply to this process.
    """

    folder: Path
    weights: str
    chat: Chat
    dtype: str
    device: str
    engine: CheckpointEngine | None = None

    @cached_property
    def config(self) -> str:
        """The digest of the checkpoint's model configuration."""
        return config_digest(self.folder)


def evaluate_checkpoint(
    served: ServedCheckpoint,
    tasks: Sequence[Task],
    library: TaskLibrary,
    settings: Evaluation,
    shared: SharedCells,
    on_task: Callable[[str], None] = lambda _: None,
) -> dict[str, CellResult]:
    """Evaluate a checkpoint on `tasks` and return the cells by name; cells with the same keys in `shared` are reused.

    Where only the grader or a reference differs, the stored answers are graded again. `on_task` gets the name of each task
    when it is done.
    """
    with preserved_random_state():
        model = open_model(served, settings, on_task)
        keys = {task.cell: _keys(served, task, model, settings) for task in tasks}
        cells: dict[str, CellResult] = {}
        left = list(dict.fromkeys(task.profile for task in tasks))
        while left:
            with shared.locked(served.weights, left) as profile:
                of_profile = [task for task in tasks if task.profile == profile]
                for task in of_profile:
                    if (cell := _stored(task, keys[task.cell], settings, shared)) is not None:
                        cells[task.cell] = cell
                        on_task(task.cell)
                if missing := [task for task in of_profile if task.cell not in cells]:
                    for name, cell in _evaluate_tasks(model, missing, library, settings, keys, served.weights):
                        shared.put(keys[name], cell)
                        cells[name] = cell
            left.remove(profile)
    return {task.cell: cells[task.cell] for task in tasks}


def open_model(served: ServedCheckpoint, settings: Evaluation, on_task: Callable[[str], None]) -> Answering:
    """Return a checkpoint as a model for lm-eval, on the backend of `served`; raises `ModelError` for damaged weights."""
    check_weights(served.folder)
    if served.engine is not None:
        # The class is imported by name, because a backend's libraries are slow to import or not installed.
        return resolve_name(served.engine.backend.model_class)(
            served.engine,
            served.folder,
            served.weights,
            served.chat,
            batch_size=settings.batch_size,
            seed=settings.seed,
            on_task=on_task,
        )
    return HarnessHFLM(
        served.folder,
        served.chat,
        device=served.device,
        dtype=served.dtype,
        batch_size=settings.batch_size,
        seed=settings.seed,
        on_task=on_task,
    )


def _keys(served: ServedCheckpoint, task: Task, model: Answering, settings: Evaluation) -> Keys:
    docs = task.test_docs(settings.limit)
    asked = task.asked(docs, model.renderer)
    return make_keys(task, docs, asked, served.weights, served.config, settings.seed, model.made_with)


def _stored(task: Task, keys: Keys, settings: Evaluation, shared: SharedCells) -> CellResult | None:
    """Return a stored cell, graded again if its grader changed; None where its answers must be drawn."""
    if (found := shared.get(keys)) is not None:
        return found
    if not task.generates or (answered := shared.with_answers(keys)) is None:
        return None
    cell = regrade_cell(task, task.test_docs(settings.limit), answered, keys)
    shared.put(keys, cell)
    return cell


def _evaluate_tasks(
    model: Answering,
    tasks: Sequence[Task],
    library: TaskLibrary,
    settings: Evaluation,
    keys: Mapping[str, Keys],
    weights: str,
) -> Iterator[tuple[str, CellResult]]:
    """Yield the cells of one profile's tasks by name, evaluated in one call of lm-eval."""
    started = time.perf_counter()
    model.answers.clear()
    logged = _logged_samples(model, tasks, library, settings)
    samples = {task.cell: sample_rows(task, logged[task.name], model.answers) for task in tasks}
    per_row = (time.perf_counter() - started) / sum(map(len, samples.values()))
    for task in tasks:
        rows, name = samples[task.cell], task.cell
        grades, seconds = first_grades(task, logged[task.name]), per_row * len(rows)
        if not task.generates:
            model.on_task(name)
        summary = summarise_cell(task, rows, grades, keys[name], weights, settings.seed, seconds)
        if task.generates:
            asked = questions_digest(task, task.test_docs(settings.limit))
            summary = summary.model_copy(update={"questions": asked})
        yield name, CellResult(summary, rows)


def _logged_samples(
    model: Answering, tasks: Sequence[Task], library: TaskLibrary, settings: Evaluation
) -> dict[str, Any]:
    handed: Any = model
    try:
        with _without_package_list():
            results = simple_evaluate(
                model=handed,
                tasks=[task.lmeval for task in tasks],
                task_manager=library.manager,
                limit=settings.limit,
                use_cache=None,
                cache_requests=False,
                apply_chat_template=model.renderer.has_template,
                fewshot_as_multiturn=True,
                bootstrap_iters=0,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=FEWSHOT_SEED,
            )
    except HarnessError:
        raise
    except Exception as error:
        if (failed := failed_in_a_grader(error)) is not None:
            raise failed from error
        raise
    if results is None or "samples" not in results:
        raise TaskError(
            f"lm-eval returned no samples for {', '.join(task.name for task in tasks)}; check these tasks with `harness tasks "
            "check`"
        )
    return results["samples"]


@contextmanager
def _without_package_list() -> Generator[None]:
    """Keep lm-eval from listing the machine and all installed packages, which starts `pip` and which nothing here reads."""
    own = lm_eval_evaluator.add_env_info
    lm_eval_evaluator.add_env_info = lambda *_: None
    try:
        yield
    finally:
        lm_eval_evaluator.add_env_info = own
