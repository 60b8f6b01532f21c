"""Experiment trackers next to the run directory, through accelerate's: TensorBoard, wandb, trackio, MLflow.

The run directory stays the state; what a tracker gets is a copy, and its files lie in the run directory too. A tracker that
breaks is left out with a warning, because its server must not decide whether a run ends.
"""

# pyright: standard
# accelerate has no types.
from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.suite import Tracker
from harness.errors import ConfigError
from harness.rundir.files import replace_file

if TYPE_CHECKING:  # accelerate takes a second to import, and most runs have no tracker.
    from accelerate.tracking import GeneralTracker

NOT_ALLOWED = re.compile(r"[^\w\-. /]", re.ASCII)  # in a name of a figure: what MLflow takes everywhere
MLFLOW_RUN, MLFLOW_URI = "mlflow_run", "MLFLOW_TRACKING_URI"
Log = Callable[[Mapping[str, Any], int], None]


def untracked(values: Mapping[str, Any], step: int) -> None:
    """Take figures to no tracker."""


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raise `ConfigError` for a tracker whose package is not installed."""
    if not names:
        return

    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in available]:
        raise ConfigError(
            f"trackers: {', '.join(missing)} is not installed; install it, for example with "
            f"pip install {' '.join(missing)}, or leave it out"
        )


@dataclass(frozen=True)
class TrackedRun:
    """How a run is called where it is tracked: its project, its name, the group of its seeds, and its folder for files."""

    project: str
    name: str
    group: str
    folder: Path

    @property
    def identity(self) -> str:
        """An id that stays when the run is started again; it is drawn once and kept in the run's folder."""
        file = self.folder / "id"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(file, lambda partial: partial.write_text(uuid.uuid4().hex[:16], encoding="utf-8"))
        return file.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def tracked(
    names: Sequence[Tracker], run: TrackedRun, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Generator[Log]:
    """Yield a function that sends a mapping of figures at a global step to all trackers; texts and lists are left out.

    `config` is what the trackers show as the run's hyperparameters. A run that is started again goes on as the same tracked
    run. A tracker that does not start or breaks is closed and left out, with one warning.
    """
    if names:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers log through it, and not all of them make it themselves.
    living: dict[Tracker, GeneralTracker] = {}
    settings = _flat(config)

    def attempt(name: Tracker, what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:
            warn(f"tracker {name} is left out from here on: {type(error).__name__}: {error}")
            if (broken := living.pop(name, None)) is not None:
                with contextlib.suppress(Exception):
                    broken.finish()  # what stays open would refuse the next run of this process

    def start(name: Tracker) -> None:
        living[name] = _made(name, run)
        living[name].start()
        _note_mlflow_run(name, living[name], run)
        living[name].store_init_configuration(settings)

    def each(what: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list(living.items()):
            attempt(name, lambda tracker=tracker: what(tracker))

    for name in names:
        attempt(name, lambda name=name: start(name))
    try:
        yield lambda values, step: each(lambda tracker: tracker.log(numbers(values), step=step))
    finally:
        each(lambda tracker: tracker.finish())


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested mapping under names joined by `/`; all else is left out.

    A character that MLflow refuses in a name, as the `@` of a cell under a profile, is `_` in all trackers.
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[NOT_ALLOWED.sub("_", f"{prefix}{name}")] = value
    return found


def _made(name: Tracker, run: TrackedRun) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    cls = LOGGER_TYPE_TO_CLASS[name]
    run.folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        return cls("tensorboard", run.folder)
    if name == "mlflow":
        import mlflow

        given = os.environ.get(MLFLOW_URI)
        mlflow.set_tracking_uri(given or f"sqlite:///{(run.folder / 'mlflow.db').resolve()}")
        if given is None:  # MLflow sets the variable, which would send this process's next run to this run's folder.
            os.environ.pop(MLFLOW_URI, None)
        file = run.folder / MLFLOW_RUN
        before = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        artifacts = str((run.folder / "mlflow").resolve()) if given is None else None
        tags = {"group": run.group}
        return cls(run.project, logging_dir=artifacts, run_id=before, run_name=run.name, tags=tags)
    if name == "trackio":
        return cls(run.project, name=run.name, group=run.group, resume="allow")
    own = {"id": run.identity, "resume": "allow", "dir": str(run.folder)}
    return cls(run.project, name=run.name, group=run.group, job_type="train", **own)


def _note_mlflow_run(name: Tracker, tracker: GeneralTracker, run: TrackedRun) -> None:
    """Keep the id that MLflow gave the run, so that the next session goes on with it."""
    if name == "mlflow":
        given = str(getattr(tracker, "tracker").info.run_id)  # noqa: B009 - the base class does not name it
        replace_file(run.folder / MLFLOW_RUN, lambda partial: partial.write_text(given, encoding="utf-8"))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as names joined by `.`; lists become text, because trackers take plain values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
