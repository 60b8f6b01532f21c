"""Apply what `--set` gives to a suite's content before it is checked: values by dotted key, and files of such values."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from harness.config.base import is_list, is_mapping
from harness.config.read_yaml import parse_yaml, read_yaml
from harness.errors import ConfigError

SETTINGS_FOLDER = Path(str(files("tasks"))) / "suites" / "settings"


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one `a.b.0.c=value`: the value is parsed as YAML, and a number is an index into a list.

    `@NAME` or `@FILE` applies a file of such keys and values, whose paths of data are relative to the file's folder.
    """
    if override.startswith("@"):
        _apply_file(raw, override)
        return
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, for example --set training.optimizer.lr=1e-4")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: {text!r} is not valid YAML; quote what has a special meaning there, such as '\"a: b\"'"
        ) from error
    set_value(raw, key, value, override)


def _apply_file(raw: dict[str, Any], override: str) -> None:
    name = override.removeprefix("@")
    path = Path(name) if Path(name).suffix in {".yaml", ".yml"} else SETTINGS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(f"@{each.stem}" for each in SETTINGS_FOLDER.glob("*.yaml")))
        raise ConfigError(
            f"--set {override}: {path} does not exist; expected a YAML file of keys and values, or {known}"
        )
    if not is_mapping(given := read_yaml(path)):
        raise ConfigError(
            f"{path}: found {type(given).__name__}, expected a mapping of keys, as --set has them, to values"
        )
    for key, value in given.items():
        of_data = key.startswith("data.") and isinstance(value, str)
        set_value(raw, key, str(path.resolve().parent / value) if of_data else value, override)


def set_value(raw: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Set the value at a dotted path; `override` is shown in error messages."""
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = _step_into(node, parent, override)
    if isinstance(value, str) and (
        parents == ["data"] or _is_model_folder(key, value) or _is_teachers_file(node, last)
    ):
        value = str(Path(value).resolve())
    if key == "storage" and isinstance(value, str) and value:
        value = absolute_storage(value, Path.cwd())
    _assign(node, last, value, override)
    expand_stages(raw)


def _is_model_folder(key: str, value: str) -> bool:
    """Return whether an override gives a model's folder, relative to the current one; else its path is a name on the hub."""
    *parents, last = key.split(".")
    names_model = last == "path" and ("student" in parents or "teacher" in parents)
    return names_model and (Path(value).is_dir() or looks_local(value))


def _is_teachers_file(node: Any, last: str) -> bool:
    """Return whether an override gives the file of a teacher that is not a model, such as a cache's scores."""
    return last == "path" and is_mapping(node) and node.get("kind") not in (None, "pretrained", "scratch")


def absolute_storage(place: str, folder: Path) -> str:
    """Return the place of finished stages, a folder as an absolute path: a worker's current folder may be another one.

    A relative path counts from `folder`; a URL stays as it is.
    """
    return place if "://" in place or "::" in place else str((folder / Path(place).expanduser()).resolve())


def looks_local(path: str) -> bool:
    """Return whether a model's path can only be a folder, not a name on the hub."""
    return path.startswith((".", "/", "~"))


def _step_into(node: Any, part: str, override: str) -> Any:
    if is_list(node):
        return node[_index(node, part, override)]
    if not is_mapping(node):
        raise _no_key(node, part, override)
    return node.setdefault(part, {})


def _assign(node: Any, part: str, value: Any, override: str) -> None:
    if is_list(node):
        node[_index(node, part, override)] = value
    elif is_mapping(node):
        node[part] = value
    else:
        raise _no_key(node, part, override)


def _no_key(node: Any, part: str, override: str) -> ConfigError:
    return ConfigError(
        f"--set {override}: {node!r} is not a mapping, so it has no key {part!r}; set the key above it to a mapping, or "
        "correct the path"
    )


def _index(node: list[Any], part: str, override: str) -> int:
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise ConfigError(
        f"--set {override}: {part!r} is not an index of a list of {len(node)}; count from 0, or set the whole list"
    )


def expand_stages(raw: dict[str, Any]) -> None:
    """Turn each stage that is only a task's name into a mapping."""
    if isinstance(raw.get("stages"), list):
        raw["stages"] = [{"task": stage} if isinstance(stage, str) else stage for stage in raw["stages"]]
