"""Send figures to experiment trackers, through accelerate: TensorBoard, wandb, trackio, MLflow.

The run directory stays the only state: a tracker gets a copy, and local trackers write to the run directory too. A tracker
that fails is left out with a warning, because a tracker's server must not end a run.
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

NOT_ALLOWED = re.compile(r"[^\w\-. /]", re.ASCII)  # characters that MLflow refuses in a figure's name
MLFLOW_RUN, MLFLOW_URI = "mlflow_run", "MLFLOW_TRACKING_URI"
Log = Callable[[Mapping[str, Any], int], None]


def untracked(values: Mapping[str, Any], step: int) -> None:
    """Do nothing: the suite names no tracker."""


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
    """A run's names in a tracker (project, name, group of seeds) and the folder for the tracker's files."""

    project: str
    name: str
    group: str
    folder: Path

    @property
    def identity(self) -> str:
        """A random id that stays the same when the run is started again: the run's folder holds it."""
        file = self.folder / "id"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(file, lambda partial: partial.write_text(uuid.uuid4().hex[:16], encoding="utf-8"))
        return file.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def tracked(
    names: Sequence[Tracker], run: TrackedRun, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Generator[Log]:
    """Yield a function that sends a mapping of figures at a step of the run to all trackers; texts and lists are left out.

    The trackers show `config` as the run's hyperparameters. A run that is started again continues the same tracked run. A
    tracker that cannot start or fails later is closed and left out, with one warning.
    """
    if names:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers log through it, and not all of them create it.
    living: dict[Tracker, GeneralTracker] = {}
    settings = _flat(config)

    def attempt(name: Tracker, what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:
            warn(f"tracker {name} is left out from here on: {type(error).__name__}: {error}")
            if (broken := living.pop(name, None)) is not None:
                with contextlib.suppress(Exception):
                    broken.finish()  # a tracker that stays open would refuse the next run of this process

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
    """Return the numbers of a nested mapping under names joined by `/`; other values are left out.

    A character that MLflow refuses in a name, such as the `@` of a cell under a profile, becomes `_` in all trackers.
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
        if given is None:  # MLflow sets the variable, and the next run of this process would write to this run's folder
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
    """Keep the id that MLflow gave the run, so that the next session continues the same tracked run."""
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
