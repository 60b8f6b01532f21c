"""The peer of a step on a device: TRL's DistillationTrainer on the same random models, with prompts as words."""

from __future__ import annotations

import importlib
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, PrinterCallback

from benchmarks.device.random_step import Load
from benchmarks.steps import Steps
from benchmarks.trl_step import LIKE_OPD, SILENT, StepClock


def words(size: int) -> Any:
    """Return a tokenizer whose words are the numbers below `size`, each its own id; 0 ends a text."""
    tokenizer = Tokenizer(WordLevel({str(number): number for number in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="0", pad_token="0")
    made.padding_side = "left"
    return made


def trl_random_steps(student: Any, teacher: Any, load: Load, device: str, rows: int) -> Steps:
    """Train two steps with TRL, `rows` sequences at a time, and return the second; the first is the warm-up."""
    trl: Any = importlib.import_module("trl")
    size, draw = len(student.get_output_embeddings().weight), torch.Generator().manual_seed(0)
    ids = torch.randint(1, size, (2 * load.prompts, load.prompt), generator=draw).tolist()
    own = {
        **LIKE_OPD, **SILENT, "use_cpu": device == "cpu", "bf16": True, "gradient_checkpointing": False, "max_steps": 2,
        "dataloader_pin_memory": False, "per_device_train_batch_size": rows, "learning_rate": 1e-9,
        "gradient_accumulation_steps": load.prompts // rows, "max_completion_length": load.response, "temperature": 1.0,
    }  # fmt: skip
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=trl.DistillationConfig(folder, **own),
            train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in ids]}),
            processing_class=words(size),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        clock.watch(trainer)
        trainer.train()
    return clock.steps()
