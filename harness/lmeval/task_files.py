"""Task files are parsed before lm-eval sees them: it skips a broken one silently, then calls the task unknown.

Groups are followed to their tasks in the same files, because lm-eval itself does it only with all data at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from harness.errors import TaskError
from harness.rundir.store import is_run_directory

TASK_FOLDER = Path(str(files("tasks")))
Index = Mapping[str, Entry]


def check_files(folders: Sequence[Path]) -> None:
    """Raise `TaskError` for the first folder, file or include that cannot be read, with file and line."""
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"task folder {folder} does not exist; --include-path takes a folder with task files")
        for path in sorted(folder.rglob("*.yaml")):
            if path.parent.name != "suites":
                _refuse_in_a_run(path)
                read_task_file(path)
        for path in sorted(folder.rglob("*.yml")):
            raise TaskError(f"{path}: lm-eval reads only files that end in .yaml; rename it to {path.stem}.yaml")


def task_settings(folders: Sequence[Path]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield each task of these folders by name: its file, and what the file says under `metadata.harness`."""
    check_files(folders)
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    for name in manager.all_subtasks:
        path = Path(str(manager.task_index[name].yaml_path))
        settings = (read_task_file(path).get("metadata") or {}).get("harness")
        yield name, path, settings if isinstance(settings, dict) else {}


def _refuse_in_a_run(path: Path) -> None:
    if (run := next(filter(is_run_directory, path.resolve().parents), None)) is not None:
        raise TaskError(
            f"{path} lies in the run directory {run}; a task file names code that is executed, so keep it where no run "
            "writes, or leave this folder out of --include-path"
        )


def read_task_file(path: Path) -> dict[str, Any]:
    """Return a task file's mapping with its includes merged and functions left as text."""
    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise TaskError(f"{path}{line}: not valid YAML ({problem})") from error
    except FileNotFoundError as error:
        raise TaskError(f"{path}: includes {error.filename}, which does not exist") from error
    except ValueError as error:
        raise TaskError(f"{path}: {error}") from error


def members(index: Index, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tasks that a name of lm-eval's index stands for, each with its file's mapping; no data is read.

    Tasks and groups that are written inside a group's file are called `<group>::<name>`, as lm-eval calls them.
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
    """Return whether a group names a task that is neither in the index nor written out in the group's file."""
    own = {"dataset_path", "custom_dataset", "class"}
    return any("::" in member and not own & content.keys() for member, content in members(index, name))
