"""Runs in processes that begin in milliseconds: forked from a server that has imported everything and computed nothing."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.run_spec import RunSpec
from harness.errors import HarnessError
from tests.support.processes import PRELOADED
from tests.support.runs import FOLDERS, cells, manifest, steps

REFUSED, FAILED = 3, 4


def start_run(spec: RunSpec, errors: Path, before: Callable[[], None] | None = None) -> BaseProcess:
    """Start a run in another process, after `before` there; what ends it but a kill is written to `errors`."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process: BaseProcess = context.Process(target=_work, args=(spec, errors, before), daemon=True)
    process.start()
    return process


def finish_run(spec: RunSpec, errors: Path, before: Callable[[], None] | None = None) -> str:
    """Do a run, or what is left of it; return an empty text, or `lost` or `traceback` with the error."""
    process = start_run(spec, errors, before)
    process.join()
    if process.exitcode == 0:
        return ""
    kind = "lost" if process.exitcode == REFUSED else "traceback"
    return f"{kind} {errors.read_text() if errors.exists() else process.exitcode}"


def go_on(
    spec: RunSpec, undisturbed: RunSpec, errors: Path, before: Callable[[], None] | None = None
) -> tuple[str, str]:
    """Do what is left of a run; return `held`, `lost`, `traceback` or `changed`, with the evidence."""
    if error := finish_run(spec, errors, before):
        return error.split()[0], error
    what = changes(spec.path, undisturbed.path)
    return ("changed", what) if what else ("held", "")


def changes(run: Path, undisturbed: Path) -> str:
    """Return what differs between a run and the undisturbed one: weights, logs, scores, answers; empty where nothing does."""
    if manifest(run)["weights"] != manifest(undisturbed)["weights"]:
        return "weights"
    if steps(run) != steps(undisturbed):
        return "step logs"
    if cells(run) != cells(undisturbed):
        return "scores"
    files = [f"{stage}/drift/samples.parquet" for stage in FOLDERS]
    files += [f"{stage}/train/rollouts.parquet" for stage in FOLDERS[1:]]
    return next((f for f in files if not pd.read_parquet(run / f).equals(pd.read_parquet(undisturbed / f))), "")


def _work(spec: RunSpec, errors: Path, before: Callable[[], None] | None) -> None:
    import torch

    from harness.pipeline.run import run

    torch.set_num_threads(1)
    if before is not None:
        before()
    try:
        run(spec)
    except (HarnessError, OSError) as error:
        errors.write_text(str(error))
        sys.exit(REFUSED)
    except Exception:
        errors.write_text(traceback.format_exc()[-2000:])
        sys.exit(FAILED)
