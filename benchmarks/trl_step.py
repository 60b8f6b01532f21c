"""The peer: TRL's DistillationTrainer on the same models and prompts, timed inside its own trainer.

It is always on-policy (GKD's lmbda = 1) with one response per prompt. With beta = 1 it minimises the reverse KL over the
whole vocabulary, whose gradient OPD estimates from the sampled token. Other settings are those of OPD, or the fastest ones.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from benchmarks.setting import Setting
from benchmarks.steps import Steps
from harness.errors import TaskError

MISSING = "TRL is not installed, so its rows are missing; install it with `pip install -e '.[trl]'`"
LIKE_OPD = {"beta": 1.0, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 1, "shuffle_dataset": False}
# TRL's defaults suit large models on GPUs.
FASTEST = {"gradient_checkpointing": False, "use_cpu": True, "dataloader_pin_memory": False}
SILENT = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


def installed() -> bool:
    """Return whether TRL can be imported."""
    return importlib.util.find_spec("trl") is not None


def trl_steps(setting: Setting, seed: int) -> Steps:
    """Train a copy of the student with TRL and return the counted steps."""
    trl: Any = importlib.import_module("trl")
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.DistillationTrainer(
            model=copy.deepcopy(setting.student.model),
            teacher_model=copy.deepcopy(setting.teacher.model),
            args=trl.DistillationConfig(folder, **settings_of(setting), seed=seed),
            train_dataset=Dataset.from_dict({"prompt": _texts(setting, seed)}),
            processing_class=setting.student.renderer.tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        clock.watch(trainer)
        trainer.train()
    return clock.steps()


def settings_of(setting: Setting) -> dict[str, Any]:
    """Return the trainer's settings, without the seed."""
    training, optimizer = setting.context.training, setting.context.training.optimizer
    return {
        **LIKE_OPD,
        **FASTEST,
        **SILENT,
        "bf16": training.autocast is not None,
        "max_steps": training.steps,
        "per_device_train_batch_size": training.prompts_per_step,
        "max_completion_length": training.max_new_tokens,
        "temperature": training.temperature,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.grad_clip,
    }


class StepClock(TrainerCallback):
    """Times whole steps, and in them generation and the teacher's backbone; the teacher's head is part of TRL's loss."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        self.phases: dict[str, list[float]] = {"generate": [], "teacher": []}
        self.lengths: list[list[int]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called when a step's prompts are at hand."""
        self.began.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called after the update."""
        self.ended.append(time.perf_counter())

    def watch(self, trainer: Any) -> None:
        """Put clocks around the trainer's generation and its teacher's forward."""
        generate = self._timed("generate", trainer._generate)

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = generate(*args, **kwargs)
            self.lengths.append([len(ids) for ids in output[1]])
            return output

        trainer._generate = counted
        backbone = trainer.teacher_model.base_model
        backbone.forward = self._timed("teacher", backbone.forward)

    def steps(self) -> Steps:
        """Return all steps but the first."""
        whole = sum(end - start for start, end in zip(self.began[1:], self.ended[1:], strict=True))
        generate, teacher = (sum(self.phases[name][1:]) for name in ("generate", "teacher"))
        lengths = [length for step in self.lengths[1:] for length in step]
        return Steps(len(self.ended) - 1, generate, teacher, whole - generate - teacher, len(lengths), sum(lengths))

    def _timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            output = function(*args, **kwargs)
            self.phases[phase].append(time.perf_counter() - start)
            return output

        return timed


def _texts(setting: Setting, seed: int) -> list[str]:
    """Return the prompts as text, as TRL needs them; raises `TaskError` where the text has different token ids."""
    renderer, tasks = setting.student.renderer, setting.context.tasks
    examples = setting.prompts(seed)
    texts = [tasks[example.task].render(example.doc, renderer) for example in examples]
    if renderer.tokenizer(text=texts)["input_ids"] != [example.prompt for example in examples]:
        raise TaskError(f"{', '.join(tasks)}: prompts as text do not tokenize to our ids; measure another suite")
    return texts
