"""Read the results of an external command: a checkpoint of the student's architecture, and lines of a step log."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import transformers

from adapters.loop.guards import Guards
from harness.adapter import StageContext
from harness.errors import TrainingError
from harness.lm.checkpoints import OWN_CODE, unfit_tensor

hub: Any = transformers  # its loaders are only partly typed

# Keys of a model's config that a training tool may change: the model computes the same.
HARMLESS = re.compile(
    r"^_|^(architectures|(torch_)?dtype|transformers_version|use_cache|(bos|eos|pad)_token_id)$|dropout$"
)


def load_result(ctx: StageContext, folder: Path) -> None:
    """Load a checkpoint's weights into the student, in place.

    Raises `TrainingError`, before the student changes, for a folder without a checkpoint, a different architecture or
    vocabulary, and weights that are missing or not finite.
    """
    if not (folder / "config.json").is_file():
        raise TrainingError(
            f"the command succeeded but left no checkpoint in {folder}; write weights and config.json there, as "
            "save_pretrained does"
        )
    try:
        _refuse_other_architecture(ctx, folder)
        model, info = hub.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **OWN_CODE
        )
    except TrainingError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise TrainingError(
            f"the command's checkpoint in {folder} cannot be loaded ({reason}); save it with save_pretrained"
        ) from error
    _refuse_other_weights(folder, info)
    _refuse_non_finite(folder, model)
    student = ctx.student.model
    if model.dtype != student.dtype:
        ctx.warn(
            f"the command left weights in {model.dtype}, which rounds small updates away; save them in {student.dtype}"
        )
    student.load_state_dict(model.state_dict(), strict=True)


class ReturnedSteps:
    """The step log that a command writes: a JSON object of numbers per line, and of numbers under `seconds`.

    Steps are counted here, whatever the command's own numbers. The guards check the lines as those of every trainer.
    """

    def __init__(self, path: Path, ctx: StageContext) -> None:
        self.path, self.ctx, self.guards = path, ctx, Guards(ctx.warn)
        self.read, self.count, self.warned = 0, 0, False

    def pass_on(self, whole: bool = False) -> None:
        """Log the new lines; a last one without a line end, which may be unfinished, only when the file is `whole`."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        complete = new if whole else new[: new.rfind(b"\n") + 1]
        self.read += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            self._pass(line)

    def _pass(self, line: str) -> None:
        found = _numbers(line)
        if found is not None:
            step = {**found, "step": self.count}
            warnings = self.guards.look_at(step)
            self.ctx.log({**_without_nan(step), "warnings": warnings})
            self.count += 1
        elif not self.warned:
            self.warned = True
            self.ctx.warn(f"{self.path}: {line[:80]!r} is not a JSON object of numbers; such lines are ignored")


def _numbers(line: str) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(line)
        values = [*{**found, "seconds": None}.values(), *found.get("seconds", {}).values()]
    except (ValueError, TypeError, AttributeError):
        return None
    return found if all(value is None or isinstance(value, int | float) for value in values) else None


def _without_nan(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with null in place of numbers that are not finite, which JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }


def _refuse_other_architecture(ctx: StageContext, folder: Path) -> None:
    ours: dict[str, Any] = ctx.student.model.config.to_dict()
    found: dict[str, Any] = hub.AutoConfig.from_pretrained(folder, **OWN_CODE).to_dict()
    differ = [key for key in ours if not HARMLESS.search(key) and key in found and ours[key] != found[key]]
    for key in sorted(differ, key=lambda key: (key != "model_type", isinstance(ours[key], list | dict), key)):
        raise TrainingError(
            f"the command's checkpoint in {folder} has a different architecture: {key} is {found[key]}, expected {ours[key]}; "
            "start from {checkpoint} and keep its config"
        )
    if not any(folder.glob("tokenizer*")):
        return
    tokenizer = hub.AutoTokenizer.from_pretrained(folder, **OWN_CODE)
    if tokenizer.get_vocab() != ctx.renderer.tokenizer.get_vocab():
        raise TrainingError(
            f"the command's checkpoint in {folder} has a different vocabulary ({len(tokenizer)} tokens, expected "
            f"{len(ctx.renderer.tokenizer)}); save the tokenizer of {{checkpoint}}, or none"
        )


def _refuse_other_weights(folder: Path, info: dict[str, Any]) -> None:
    if (unfit := unfit_tensor(info)) is not None:
        raise TrainingError(
            f"the command's checkpoint in {folder} does not fit its own config: {unfit}; save it with save_pretrained"
        )


def _refuse_non_finite(folder: Path, model: Any) -> None:
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise TrainingError(
                f"the command's checkpoint in {folder} has weights in {name} that are NaN or infinite; lower its learning rate"
            )
