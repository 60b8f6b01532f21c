"""Parse and check task files before lm-eval reads them: it silently skips a broken file, and then the task is unknown.

Groups are resolved to their tasks here too, because lm-eval resolves them only while it loads the tasks' data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from harness.config.base import is_list, is_mapping
from harness.config.read_yaml import describe_yaml_error
from harness.errors import TaskError
from harness.rundir.store import is_run_directory

TASK_FOLDER = Path(str(files("tasks")))
METRIC_KEYS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")  # other keys are the metric's own arguments
Index = Mapping[str, Entry]


def check_files(folders: Sequence[Path]) -> None:
    """Raise `TaskError`, with file and line, for the first folder, file or include that cannot be read."""
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"task folder {folder} does not exist; --include-path takes a folder with task files")
        for path in sorted(folder.rglob("*.yaml")):
            if path.parent.name != "suites" and not _is_suite(path):
                _refuse_in_a_run(path)
                read_task_file(path)
        for path in sorted(folder.rglob("*.yml")):
            raise TaskError(f"{path}: lm-eval reads only files that end in .yaml; rename it to {path.stem}.yaml")


def _is_suite(path: Path) -> bool:
    """Return whether a file is a suite next to task files: its `include` names folders, which lm-eval would open as files."""
    return any(line.startswith("stages:") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())


def task_settings(folders: Sequence[Path]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield each task of these folders: its name, its file, and the file's `metadata.harness`."""
    check_files(folders)
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    for name in manager.all_subtasks:
        path = Path(str(manager.task_index[name].yaml_path))
        settings = (read_task_file(path).get("metadata") or {}).get("harness")
        yield name, path, settings if isinstance(settings, dict) else {}


def _refuse_in_a_run(path: Path) -> None:
    if (run := next(filter(is_run_directory, path.resolve().parents), None)) is not None:
        raise TaskError(
            f"{path} lies in the run directory {run}; a task file names code that is executed, so keep task files where no "
            "run writes, or leave this folder out of --include-path"
        )


def read_task_file(path: Path) -> dict[str, Any]:
    """Return a task file's mapping with its includes merged and functions as text; raises `TaskError` with file and line."""
    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        raise TaskError(describe_yaml_error(path, error)) from error
    except FileNotFoundError as error:
        raise TaskError(
            f"{path}: includes {error.filename}, which does not exist; correct the path, which is relative to this file"
        ) from error
    except OSError as error:
        raise TaskError(
            f"{path}: {error.filename} cannot be read ({error.strerror}); expected a readable YAML file"
        ) from error
    except ValueError as error:
        raise TaskError(f"{path}: {error}") from error


def check_mapping(name: str, content: Mapping[str, Any]) -> None:
    """Raise `TaskError` for values of a task's file that lm-eval would silently misread.

    Keys of `metadata` and of a metric are free, so only those that look like a misspelled known key are refused.
    """
    metadata = content.get("metadata")
    if metadata is not None and not is_mapping(metadata):
        raise TaskError(f"task {name}: metadata is {metadata!r}, expected a mapping, such as `version: 1.0`")
    _refuse_near(name, "metadata", metadata or {}, ("harness",))
    for key, least in (("num_fewshot", 0), ("repeats", 1)):
        value = content.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise TaskError(f"task {name}: {key} is {value!r}, expected a whole number of {least} or more")
    if content.get("output_type") == "multiple_choice" and content.get("doc_to_choice") is None:
        raise TaskError(
            f"task {name}: output_type is multiple_choice and doc_to_choice is missing; name the choices there"
        )
    listed = content.get("metric_list")
    if listed is not None and not (
        is_list(listed) and all(is_mapping(entry) and "metric" in entry for entry in listed)
    ):
        raise TaskError(
            f"task {name}: metric_list is {listed!r}, expected a list of mappings, each with the key `metric`"
        )
    for entry in listed or ():
        where = f"metric {entry['metric']!s}"
        _refuse_near(name, where, entry, METRIC_KEYS)
        own_metrics = content.get("process_results") is not None or entry.get("hf_evaluate")
        named, known = entry["metric"], list(METRIC_REGISTRY)
        near = difflib.get_close_matches(str(named), known, n=1, cutoff=0.85)
        if not own_metrics and isinstance(named, str) and named not in known and near:
            raise TaskError(f"task {name}: metric_list names the metric {named!r}, expected {near[0]!r}")
        if not isinstance(better := entry.get("higher_is_better", True), bool):
            raise TaskError(f"task {name}: {where}: higher_is_better is {better!r}, expected true or false")


def _refuse_near(name: str, where: str, found: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in found:
        if key not in known and (near := difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.85)):
            raise TaskError(f"task {name}: {where} has the key {key!r}, expected {near[0]!r}")


def members(index: Index, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tasks that a name in lm-eval's index stands for, each with its file's mapping; no data is read.

    Tasks and groups that are written inside a group's file are named `<group>::<name>`, as in lm-eval.
    """
    entry = index[name]
    if entry.kind is Kind.TAG:
        for tagged in sorted(entry.tags):
            yield from members(index, tagged)
        return
    content = read_task_file(entry.yaml_path) if entry.yaml_path else dict(entry.cfg or {})
    if entry.kind is Kind.GROUP:
        yield from _group_members(index, name, content)
    else:
        yield name, content


def _group_members(index: Index, group: str, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    listed = content.get("task") or []
    for item in [listed] if isinstance(listed, str) else listed:
        inline: dict[str, Any] = item if isinstance(item, dict) else {}
        name = str(inline.get("group") or inline.get("task") or item)
        if name in index:
            yield from members(index, name)
        elif "group" in inline:
            yield from _group_members(index, f"{group}::{name}", inline)
        else:
            yield f"{group}::{name}", dict(inline)


def lacks_members(index: Index, name: str) -> bool:
    """Return whether a group names a task that is neither in the index nor defined in the group's file."""
    own = {"dataset_path", "custom_dataset", "class"}
    return any("::" in member and not own & content.keys() for member, content in members(index, name))
