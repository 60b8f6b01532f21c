"""Find a run's models: in a folder, on the hub, or by building them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from harness.config.models import Model, Pretrained
from harness.errors import ConfigError, HarnessError, ModelError
from harness.lm.chat import Renderer
from harness.lm.checkpoints import OWN_CODE, context_of, load_renderer
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.build.scratch import Progress, ensure_built
from harness.pipeline.build.scratch_tokenizer import train_tokenizer, training_texts

HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def checkpoint_of(
    spec: Model, seed: int, library: TaskLibrary, progress: Progress = lambda *_: None, device: str = "cpu"
) -> Path:
    """Return the folder that holds a model's weights; a missing model is built on `device` or downloaded.

    `seed` is the run's, for a recipe without its own. `progress` receives (what, done, total) while a model is built. Raises
    `ModelError` for a model that is neither a folder nor on the hub.
    """
    if not isinstance(spec, Pretrained):
        return ensure_built(spec, seed if spec.seed is None else spec.seed, library, progress, device)
    if Path(spec.path).is_dir():
        return Path(spec.path).resolve()
    patterns = [*HUB_PATTERNS, *(["*.py"] if OWN_CODE["trust_remote_code"] else [])]
    try:
        return Path(snapshot_download(spec.path, revision=spec.revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(
            f"model {spec.path!r} is neither a local folder nor a hub model that can be fetched now ({error}); "
            "give a folder, or download it first"
        ) from error


def tokenizer_without_writing(spec: Model, tasks: dict[str, Task], library: TaskLibrary) -> tuple[Renderer, int]:
    """Return a student's renderer and its context in tokens, without building or downloading a model.

    Raises `ConfigError` for a pretrained model that is not a local folder.
    """
    if isinstance(spec, Pretrained):
        if not Path(spec.path).is_dir():
            raise ConfigError(f"{spec.path} is not a local folder; the run downloads and checks it")
        return load_renderer(Path(spec.path), spec), context_of(Path(spec.path))
    return Renderer(train_tokenizer(spec, training_texts(spec, library, tasks)), spec.chat), spec.architecture.context


def tokenizer_or_reason(spec: Model, tasks: dict[str, Task], library: TaskLibrary) -> tuple[Renderer, int] | str:
    """Return what `tokenizer_without_writing` returns, or the reason why the tokenizer cannot be read."""
    try:
        return tokenizer_without_writing(spec, tasks, library)
    except (HarnessError, OSError) as error:
        return str(error)
