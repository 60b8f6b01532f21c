"""Tasks with settled generation, checkpoints with another configuration, and evaluations of a folder of tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM

from harness.config.evaluation import Decoding, Evaluation
from harness.config.models import Chat
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate_checkpoint
from harness.lm.checkpoints import weights_digest
from harness.lmeval.generation_settings import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.rundir.records.cell_records import CellSummary
from tests.support.models import write_task

CHATML = Chat(template="chatml")
DOC = {"prompt": "say 1", "target": "1"}
OWN_METRIC = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
CHOICES = {"output_type": "multiple_choice", "generation_kwargs": None, "doc_to_choice": "{{[target, prompt]}}"}
# As Qwen3's own: an undefined flag thinks, and so does one that is None.
THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<no thinking>{% endif %}"
)


def settled(library: TaskLibrary, *names: str, **decoding: Any) -> list[Task]:
    tasks = [library.load(name) for name in names]
    for task in tasks:
        settle_generation(task, Decoding.model_validate({"max_gen_toks": 24, **decoding}))
    return tasks


def with_config(folder: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a checkpoint whose config.json says something else, with the same weights."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def write_choices(folder: Path) -> list[dict[str, Any]]:
    """Write the multiple-choice task `made_up`, which asks for one of three words, and return its items."""
    rows = [{"prompt": f"pick {i}", "answers": ["Oslo", "monday", "{"], "label": i % 3} for i in range(6)]
    write_task(
        folder, docs={"train": rows, "test": rows}, output_type="multiple_choice", doc_to_target="label",
        doc_to_choice="answers", generation_kwargs=None, grader=None, metadata={"version": 1.0},
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    return rows


def cells(folder: Path, subject: ServedCheckpoint, out: Path, *names: str, **settings: Any) -> dict[str, CellResult]:
    """Evaluate the tasks in a folder as their files say."""
    library = TaskLibrary([folder])
    tasks = [library.load(name) for name in names]
    for task in tasks:
        settle_generation(task, Decoding())
    return evaluate_checkpoint(subject, tasks, library, Evaluation.model_validate(settings), SharedCells(out))


def subject(folder: Path, chat: Chat = CHATML) -> ServedCheckpoint:
    """Return a checkpoint as the evaluator gets it, in float32 on the CPU."""
    return ServedCheckpoint(folder, weights_digest(folder), chat, "float32", "cpu")


def stock_answers(folder: Path, task: Task, library: TaskLibrary, limit: int, **more: Any) -> list[str]:
    """Return the answers of lm-eval's own `hf` model class."""
    stock: Any = HFLM
    model = stock(pretrained=str(folder), device="cpu", dtype="float32", batch_size=5)
    results: Any = simple_evaluate(
        model=model, tasks=[task.lmeval], task_manager=library.manager, limit=limit, apply_chat_template=True,
        fewshot_as_multiturn=True, bootstrap_iters=0, **more,
    )  # fmt: skip
    samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


def float32_spec() -> Any:
    """Return a model's settings as `load` reads them."""

    class Spec:
        dtype = "float32"
        chat = CHATML

    return Spec()


def unwritten(cell: CellResult) -> CellSummary:
    """Return a cell's summary as it is before it is written, without the digest of its file of answers."""
    return cell.summary.model_copy(update={"samples_digest": ""})
