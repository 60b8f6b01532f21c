"""Task files are parsed before lm-eval sees them: it skips a broken one silently, then calls the task unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from harness.errors import TaskError


def check_files(folders: Sequence[Path]) -> None:
    """Raise `TaskError` for the first folder, file or include that cannot be read, with file and line."""
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"task folder {folder} does not exist; --include-path takes a folder with task files")
        for path in sorted(folder.rglob("*.yaml")):
            if path.parent.name != "suites":
                read_task_file(path)
        for path in sorted(folder.rglob("*.yml")):
            raise TaskError(f"{path}: lm-eval reads only files that end in .yaml; rename it to {path.stem}.yaml")


def read_task_file(path: Path) -> dict[str, Any]:
    """Return a task file's mapping with its includes merged and functions left as text."""
    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise TaskError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    except FileNotFoundError as error:
        raise TaskError(f"{path}: includes {error.filename}, which does not exist") from error
    except ValueError as error:
        raise TaskError(f"{path}: {error}") from error
