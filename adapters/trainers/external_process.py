"""Run a command in its own process group, which ends with the harness, and read its step log while it runs."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from harness.adapter import StageContext
from harness.engines.child_processes import end_group
from harness.errors import TrainingError
from harness.teachers.local import LocalTeacher

POLL_SECONDS = 1.0
# Without a buffer, the output of a Python command comes before the error that ended it.
IN_ORDER = {"PYTHONUNBUFFERED": "1"}
WATCHDOG = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"


def run_command(command: list[str], log: Path, pass_on: Callable[..., None]) -> None:
    """Run a command to its end, write its output to `log`, and call `pass_on` every second, at last with `whole=True`.

    Raises `TrainingError` for a command that cannot be started or that fails.
    """
    process = _start(command, log)
    try:
        with _watchdog(process.pid):
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                pass_on()
    finally:
        end_group(process)
    pass_on(whole=True)
    if code := process.returncode:
        how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(
            f"the command {_short(command)} {how}; its last line is {_last_line(log)!r}; read all in {log}"
        )


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=IN_ORDER | os.environ,
                start_new_session=True,
            )
    except OSError as error:
        raise TrainingError(
            f"the command {_short(command)} cannot be started: {error}; check its program and arguments"
        ) from error


@contextmanager
def _watchdog(group: int) -> Generator[None]:
    """End the command's process group when this process ends, even by SIGKILL, which closes the watchdog's standard input."""
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHDOG, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        watchdog.kill()
        watchdog.communicate()


def _short(command: list[str]) -> str:
    return textwrap.shorten(shlex.join(command), 120, placeholder=" ...")


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**16))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""


@contextmanager
def free_device(ctx: StageContext) -> Generator[None]:
    """Move the stage's models to the CPU while the command uses the accelerator."""
    models: list[Any] = [ctx.student.model, *([ctx.teacher.model] if isinstance(ctx.teacher, LocalTeacher) else [])]
    for model in models:
        model.cpu()
    if ctx.device != "cpu":
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for model in models:
            model.to(ctx.device)
