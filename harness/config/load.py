"""Read suite files: find them by name or path, apply overrides, and refuse mistakes in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config.base import Strict, is_list, is_mapping
from harness.config.explain import explain
from harness.config.models import Pretrained, Scratch
from harness.config.overrides import absolute_storage, apply_override, expand_stages, looks_local, set_value
from harness.config.processor import has_bfloat16
from harness.config.read_yaml import read_yaml
from harness.config.suite import Suite
from harness.config.teacher_settings import TeacherSettings
from harness.config.training import Training, merge_training, training_of_start
from harness.errors import ConfigError

SUITE_FOLDER = Path(str(files("tasks"))) / "suites"


def load_suite(
    name: str, overrides: Sequence[str] = (), include: Sequence[Path] = (), settings: Mapping[str, Any] | None = None
) -> Suite:
    """Read a suite by name (`tiny`) or path (`my/suite.yaml`) and apply `key.path=value` or `@FILE` overrides.

    `settings` maps key paths to values that are set last, as they are, without being parsed as YAML. Relative paths of data,
    task folders, models, chat templates, `storage` and a teacher's files are relative to the suite file's folder, those in
    overrides to the current folder.
    Raises `ConfigError` with file, key, what was found and what was expected.
    """
    path = find_suite(name, include)
    raw = _read_mapping(path)
    expand_stages(raw)
    for override in overrides:
        apply_override(raw, override)
    for key, value in (settings or {}).items():
        set_value(raw, key, deepcopy(value), f"{key}={value}")
    _resolve_autocast(raw, str(raw.get("device", "auto")))
    _spread_training(raw, path)
    try:
        suite = Suite.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Suite)}") from error
    for entry in suite.adapters:
        _check_entry_training(suite, entry, path)
    return _with_absolute_paths(suite, path.parent, include)


def find_suite(name: str, include: Sequence[Path] = ()) -> Path:
    """Return the file of a suite given by path or name; names are looked up in `include`, then among the shipped suites."""
    if Path(name).suffix in {".yaml", ".yml"} or "/" in name:
        if Path(name).is_file():
            return Path(name).resolve()
        raise ConfigError(
            f"suite file {name} does not exist (looked in {Path.cwd()}); correct the path, or give a name "
            "that `harness suites` lists"
        )
    folders = _suite_folders(include)
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return (folder / f"{name}.yaml").resolve()
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    raise ConfigError(f"there is no suite {name!r}; known are {', '.join(known)}, or give a path that ends in .yaml")


def read_suite_files(include: Sequence[Path] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the file and the unchecked content of each suite that can be named; YAML files without `stages` are left out."""
    for folder in _suite_folders(include):
        for path in sorted(folder.glob("*.yaml")):
            raw = _read_mapping(path)
            if "stages" in raw:
                yield path.resolve(), raw


def _suite_folders(include: Sequence[Path]) -> list[Path]:
    return [*include, *(folder / "suites" for folder in include), SUITE_FOLDER]


def _check_entry_training(suite: Suite, entry: str, path: Path) -> None:
    try:
        for stage in suite.stages:
            suite.training_for(stage, entry)
    except ValidationError as error:
        raise ConfigError(f"{path}: adapters.{entry}.training.{explain(error, Training)}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if not is_mapping(raw):
        raise ConfigError(
            f"{path}: found {type(raw).__name__}, expected a mapping with name, student, stages, adapters"
        )
    return raw


def _resolve_autocast(node: Any, device: str, above: tuple[str, ...] = ()) -> None:
    """Replace each `autocast: auto` of a training or a warm-up by what this machine computes fast; a run records that."""
    if is_list(node):
        for child in node:
            _resolve_autocast(child, device, above)
    elif is_mapping(node):
        budget = above[-1:] in (("training",), ("warmup",)) or above[-2:-1] == ("starts",)
        if budget and node.get("autocast") == "auto":
            node["autocast"] = "bfloat16" if has_bfloat16(device) else None
        for key, child in node.items():
            _resolve_autocast(child, device, (*above, key))


def _spread_training(raw: dict[str, Any], path: Path) -> None:
    """Complete each stage's training with the suite's, so that a stage states only what differs."""
    shared: Any = raw.get("training") or {}
    stages = raw.get("stages")
    if is_list(stages) and is_mapping(shared):
        chosen = [_choose_start(stage, f"{path}: stages.{n}", raw.get("student")) for n, stage in enumerate(stages)]
        raw["stages"] = [_complete_stage(stage, shared, raw.get("adapters")) for stage in chosen]


def _choose_start(stage: Any, where: str, student: Any) -> Any:
    """Return a stage whose `starts` are replaced by the training of the student's start, or strength."""
    if not is_mapping(stage) or "starts" not in stage:
        return stage
    rest = {key: value for key, value in stage.items() if key != "starts"}
    given: dict[str, Any] = student if is_mapping(student) else {}
    start = given.get("start") or given.get("strength")
    return {**rest, "training": training_of_start(stage["starts"], stage.get("training") or {}, start, where)}


def _complete_stage(stage: Any, shared: dict[str, Any], entries: Any) -> Any:
    """Return a stage with its whole training, and with its adapter as a mapping."""
    own = stage.get("training", {}) if is_mapping(stage) else None
    if not is_mapping(stage) or not is_mapping(own):
        return stage
    stage = {**stage, "training": merge_training(shared, own)}
    if isinstance(name := stage.get("adapter"), str):
        entry: Any = entries.get(name) if is_mapping(entries) else None
        stage["adapter"] = (
            {**entry, "adapter": entry.get("adapter") or name} if is_mapping(entry) else {"adapter": name}
        )
    return stage


def _with_absolute_paths(suite: Suite, folder: Path, include: Sequence[Path]) -> Suite:
    data = {name: str((folder / path).resolve()) for name, path in suite.data.items()}
    for name, path in data.items():
        if not Path(path).exists():
            raise ConfigError(
                f"data.{name}: {path} does not exist; put the records there or say where they are with "
                f"--set data.{name}=/absolute/path"
            )
    folders = [str((folder / path).resolve()) for path in suite.include] + [str(path.resolve()) for path in include]
    stages = tuple(
        stage.model_copy(update={"teacher": _resolve_paths(stage.teacher, folder, f"stages.{place}.teacher")})
        for place, stage in enumerate(suite.stages)
    )
    models = {
        "student": _resolve_paths(suite.student, folder, "student"),
        "teacher": _resolve_paths(suite.teacher, folder, "teacher"),
        "stages": stages,
        "storage": suite.storage and absolute_storage(suite.storage, folder),
    }
    return suite.model_copy(update={"data": data, "include": tuple(folders), **models})


def _resolve_paths(value: Any, folder: Path, key: str) -> Any:
    """Return a model, or a teacher with the models and files in its fields, with paths relative to `folder` made absolute."""
    if isinstance(value, Pretrained | Scratch):
        return _with_folder(_with_template(value, folder), folder, key)
    if isinstance(value, Path):
        return (folder / value.expanduser()).resolve()
    if isinstance(value, TeacherSettings):
        own = {name: getattr(value, name) for name in type(value).model_fields}
        resolved = {name: _resolve_paths(part, folder, f"{key}.{name}") for name, part in own.items()}
        return value.model_copy(update={name: part for name, part in resolved.items() if part is not own[name]})
    if isinstance(value, Strict) and isinstance(path := getattr(value, "path", None), str):  # what a server serves
        place = (folder / Path(path).expanduser()).resolve()
        return value.model_copy(update={"path": str(place)}) if place.is_dir() else value
    if is_mapping(value):
        return {name: _resolve_paths(part, folder, f"{key}.{name}") for name, part in value.items()}
    return value


def _with_folder(model: Pretrained | Scratch, folder: Path, key: str) -> Pretrained | Scratch:
    """Return the model with its folder as an absolute path; a name on the hub stays."""
    if not isinstance(model, Pretrained):
        return model
    place = (folder / Path(model.path).expanduser()).resolve()
    if place.is_dir():
        return model.model_copy(update={"path": str(place)})
    if looks_local(model.path):
        raise ConfigError(
            f"{key}.path: {model.path} is not a folder; paths in a suite are relative to its folder, {folder}"
        )
    if Path(model.path).is_dir():
        raise ConfigError(
            f"{key}.path: {model.path} is in the current folder, but paths in a suite are relative to its folder, {folder}; "
            f"write it relative to that, or give it as --set {key}.path={model.path}"
        )
    return model


def _with_template(model: Pretrained | Scratch, folder: Path) -> Pretrained | Scratch:
    """Return the model with its chat template's file as an absolute path; the name of a shipped template stays."""
    template = model.chat.template
    if template is None or not {"/", "."} & set(template):
        return model
    chat = model.chat.model_copy(update={"template": str((folder / template).resolve())})
    return model.model_copy(update={"chat": chat})
