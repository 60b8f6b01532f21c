"""Experiment trackers next to the run directory, through accelerate's: TensorBoard, wandb, trackio, MLflow.

The run directory stays the state; what a tracker gets is a copy. A tracker that breaks while a run goes on is left out
with a warning, because its server must not decide whether a run ends.
"""

# pyright: standard
# accelerate has no types.
from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.suite import Tracker
from harness.errors import ConfigError

if TYPE_CHECKING:  # accelerate takes a second to import, and most runs have no tracker.
    from accelerate.tracking import GeneralTracker

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


@contextlib.contextmanager
def tracked(
    names: Sequence[Tracker],
    project: str,
    run: str,
    folder: Path,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Generator[Log]:
    """Yield a function that sends a mapping of figures at a global step to all trackers; texts and lists are left out.

    TensorBoard writes below `folder`. `config` is what the trackers show as the run's hyperparameters.
    """
    if names:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers log through it, and not all of them make it themselves.
    living = {name: _start(name, project, run, folder) for name in names}
    settings = _flat(config)

    def each(what: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list(living.items()):
            try:
                what(tracker)
            except Exception as error:
                del living[name]
                warn(f"tracker {name} is left out from here on: {type(error).__name__}: {error}")

    each(lambda tracker: tracker.store_init_configuration(settings))
    try:
        yield lambda values, step: each(lambda tracker: tracker.log(numbers(values), step=step))
    finally:
        each(lambda tracker: tracker.finish())


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a nested mapping under names joined by `/`; all else is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


def _start(name: Tracker, project: str, run: str, folder: Path) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    cls = LOGGER_TYPE_TO_CLASS[name]
    made = {
        "tensorboard": lambda: cls("tensorboard", folder),
        "wandb": lambda: cls(project, name=run),
        "trackio": lambda: cls(project, name=run),
        "mlflow": lambda: cls(project, run_name=run),
    }[name]()
    try:
        made.start()
    except Exception as error:
        raise ConfigError(
            f"trackers: {name} does not start ({type(error).__name__}: {error}); set it up or leave it out"
        ) from error
    return made


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as names joined by `.`; lists become text, because trackers take plain values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
