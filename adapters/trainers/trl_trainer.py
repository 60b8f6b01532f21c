"""Run TRL's trainer with a stage's prompts, optimiser and stop tokens, and write its metrics to the step log."""

from __future__ import annotations

import copy
import gc
import importlib
import tempfile
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from adapters.loop.guards import Guards, broken_step
from adapters.loop.prompts import prompt_batches
from harness.adapter import StageContext
from harness.errors import NotFiniteError, TrainingError
from harness.lm.optimiser import Updater
from harness.lm.seeding import preserved_random_state
from harness.rundir.process.session import Timer
from harness.teachers.local import LocalTeacher, check_same_rows

QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
# `logging_nan_inf_filter` would log the last finite loss in place of one that is not finite.
PLAIN = {"shuffle_dataset": False, "logging_nan_inf_filter": False}


def train_with_trl(ctx: StageContext, options: Mapping[str, Any]) -> None:
    """Train `ctx.student` in place with TRL's options; raises `TrainingError` for a gradient that is not finite."""
    teacher = _local(ctx)
    models = ctx.student.model, teacher.model
    with (
        tempfile.TemporaryDirectory(dir=ctx.folder) as folder,
        preserved_random_state(),
        _only_weights_change(*models),
    ):
        _trainer(ctx, teacher, folder, options).train()
    gc.collect()  # the trainer is in reference cycles with models and optimiser, whose memory the next stage needs


def _trainer(ctx: StageContext, teacher: LocalTeacher, folder: str, options: Mapping[str, Any]) -> Any:
    trl = _trl()
    datasets: Any = importlib.import_module("datasets")
    updater = Updater(ctx.student, ctx.training.optimizer, ctx.training.steps)
    log = _Log(ctx)
    trainer = _trainer_class(trl, log, teacher.model)(
        model=ctx.student.model,
        teacher_model=teacher.model,
        args=trl.DistillationConfig(folder, **QUIET, **PLAIN, **options, **_settings(ctx)),
        train_dataset=datasets.Dataset.from_dict({"prompt": _prompts(ctx)}),
        processing_class=ctx.renderer.tokenizer,
        callbacks=[log],
        optimizers=(updater.optimizer, updater.scheduler),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.eos_token_ids = list(ctx.renderer.stop_ids)
    return trainer


def _trl() -> Any:
    """Return TRL, imported in another thread.

    TRL imports vLLM where that is installed, and vLLM keeps the traceback of a failed optional import. A traceback keeps all
    frames below it alive, and in this thread these hold the models of a stage.
    """

    def imported() -> Any:
        trl: Any = importlib.import_module("trl")
        _ = trl.DistillationTrainer, trl.DistillationConfig  # TRL imports them at the first access
        return trl

    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(imported).result()


def _local(ctx: StageContext) -> LocalTeacher:
    if not isinstance(ctx.teacher, LocalTeacher):
        raise TrainingError(
            "TRL reads the teacher's hidden states, but this stage's teacher is not a model in this process; use a local one"
        )
    if ctx.device != "cpu" and (count := torch.cuda.device_count()) > 1:
        raise TrainingError(
            f"TRL trains on one GPU here, but torch sees {count}; set CUDA_VISIBLE_DEVICES to one of them"
        )
    check_same_rows(ctx.teacher.model, ctx.student.model)
    return ctx.teacher


def _settings(ctx: StageContext) -> dict[str, Any]:
    training = ctx.training
    rollouts = training.prompts_per_step * training.num_generations
    size = training.micro_batch or rollouts
    return {
        "use_cpu": ctx.device == "cpu",
        "dataloader_pin_memory": ctx.device != "cpu",
        "bf16": training.autocast is not None,
        "seed": ctx.seed % 2**32,
        "max_steps": training.steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rollouts // size,
        "max_completion_length": training.max_new_tokens,
        "temperature": training.temperature,
        "generation_kwargs": {"eos_token_id": list(ctx.renderer.stop_ids)},
        "max_grad_norm": training.optimizer.grad_clip,
    }


def _prompts(ctx: StageContext) -> list[list[int]]:
    """Return the prompts of all steps as ids, each as often as it is answered."""
    batches = islice(prompt_batches(ctx), ctx.training.steps)
    return [e.prompt for batch in batches for e in batch for _ in range(ctx.training.num_generations)]


def _trainer_class(trl: Any, log: _Log, teacher: Any) -> Any:
    parent = trl.DistillationTrainer

    class Trainer(parent):
        """Takes prompts as ids, because their text may be tokenised to different ids, and times the phases."""

        def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
            return prompts, None, {}

        def _generate(self, prompts: list[list[int]]) -> Any:
            with log.timer("generate"):
                return parent._generate(self, prompts)

        def _get_last_hidden_state(self, unwrapped_model: Any, *args: Any, **kwargs: Any) -> Any:
            with log.timer("teacher") if unwrapped_model is teacher else nullcontext():
                return parent._get_last_hidden_state(self, unwrapped_model, *args, **kwargs)

    return Trainer


@contextmanager
def _only_weights_change(student: Any, teacher: Any) -> Generator[None]:
    """Restore all of both models but the student's weights: TRL changes token ids, tags and more."""
    settings: dict[str, Any] = student.config.__dict__
    before, generation, tags = dict(settings), copy.deepcopy(student.generation_config), student.model_tags
    checkpointing, device = student.is_gradient_checkpointing, student.device
    try:
        yield
    finally:
        settings.clear()
        settings.update(before)
        student.generation_config, student.model_tags = generation, tags
        if not checkpointing:
            student.gradient_checkpointing_disable()
        student.zero_grad(set_to_none=True)
        student.to(device)
        for wrapped in (student.__dict__, teacher.__dict__):
            # accelerate wraps `forward` under autocast; its own unwrapping would also remove transformers' decorators.
            wrapped.pop("forward", None)
            wrapped.pop("_original_forward", None)


class _Log(TrainerCallback):
    """Writes TRL's metrics as lines of the step log; figures that TRL does not report are left out.

    The seconds of `teacher` are those of its decoder; its output layer is computed in TRL's loss, so it counts for `student`.
    """

    def __init__(self, ctx: StageContext) -> None:
        self.ctx, self.guards = ctx, Guards(ctx.warn)
        self.timer = _timer()
        self.tokens = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the step's timer; called before its responses are generated."""
        self.timer = _timer()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise `NotFiniteError` for a gradient that is not finite; called between clipping and the update."""
        gradients = [p.grad for p in self.ctx.student.parameters() if p.grad is not None]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.ctx.log(broken_step(state.global_step))
            raise NotFiniteError("the gradient of TRL's loss is not finite; lower the learning rate")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Log a step; called once per step, and at the end with a summary, which has no `loss`."""
        if logs is None or "loss" not in logs:
            return
        line = {"step": state.global_step - 1, **self._metrics(logs), "seconds": self._seconds()}
        self.ctx.log({**line, "warnings": self.guards.look_at(line)})

    def _metrics(self, logs: dict[str, Any]) -> dict[str, Any]:
        before, self.tokens = self.tokens, int(logs["num_tokens"])
        return {
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"],
            "lr": logs["learning_rate"],
            "entropy": logs["entropy"],
            "response_tokens_mean": logs["completions/mean_length"],
            "truncated_share": logs["completions/clipped_ratio"],
            "tokens": self.tokens - before,
        }

    def _seconds(self) -> dict[str, float]:
        seconds = self.timer.seconds
        student = seconds["step"] - seconds["generate"] - seconds["teacher"]
        return {**seconds, "student": round(student, 4)}


def _timer() -> Timer:
    return Timer("generate", "teacher", whole="step")
