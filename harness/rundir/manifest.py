"""The manifest: what a run was made of, so that a figure can be traced to code, versions, hardware and weights."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.rundir.schema import Git, Session

PACKAGES = ("continual-harness", "torch", "transformers", "tokenizers", "datasets", "lm_eval", "accelerate", "numpy")
OPTIONAL = ("peft", "trl", "vllm")  # recorded where they are installed


def environment() -> Session:
    """Return a session with package versions, hardware, the code's git commit and uncommitted diff, and the command line."""
    return Session(
        git=_git(Path(__file__).parents[1]),
        packages={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, **_optional()},
        hardware=_hardware(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        created=now(),
    )


def now() -> str:
    """Return the current time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _optional() -> dict[str, str]:
    return {name: version(name) for name in OPTIONAL if find_spec(name) is not None}


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 2**30)
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "memory_gib": memory, "gpus": gpus}


def _git(folder: Path) -> Git:
    """Return commit, dirtiness and diff of the checkout that the code runs from; nothing for an installed package."""

    def git(*args: str) -> str:
        # A diff holds the bytes of the files, whatever they are written in.
        done = subprocess.run(["git", *args], cwd=folder, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            return Git()
        diff = git("diff", "HEAD")
        return Git(commit=git("rev-parse", "HEAD"), dirty=bool(diff), diff=diff or None)
    except (OSError, subprocess.CalledProcessError):
        return Git()
