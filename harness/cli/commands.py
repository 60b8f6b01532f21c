"""Find commands by entry point: a package adds one by registering it in the group `harness.commands`.

An entry point names a function, which becomes a command, or a `typer.Typer`, which becomes a group of commands. Its module is
imported when the command is called or listed, so it should import slow libraries inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from harness.errors import ConfigError

GROUP = "harness.commands"
OWN = {
    "run": "harness.cli.run_commands:run",
    "sweep": "harness.cli.run_commands:sweep",
    "study": "harness.cli.run_commands:study",
    "evaluate": "harness.cli.score_commands:evaluate",
    "regrade": "harness.cli.score_commands:regrade",
    "doctor": "harness.cli.doctor_command:doctor",
    "runs": "harness.cli.verify_command:runs",
    "teacher": "harness.cli.teacher_commands:teacher",
    "tasks": "harness.cli.task_commands:tasks",
    "suites": "harness.cli.task_commands:suites",
}


class Commands(TyperGroup):
    """The commands of the harness and of other packages, each loaded when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, the harness's own first."""
        return list(registered_commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None for an unknown name; one that cannot be loaded raises the reason when it is called."""
        points = registered_commands()
        # For an unknown name, typer suggests names of loaded commands, so all are loaded.
        for name in [cmd_name] if cmd_name in points else list(points):
            if name not in self.commands:
                self.commands[name] = _command(name, points[name])
        return self.commands.get(cmd_name)


def registered_commands() -> dict[str, EntryPoint]:
    """Return all commands by name, in the order of the help; another package cannot replace a command of the harness."""
    own = {name: EntryPoint(name, place, GROUP) for name, place in OWN.items()}
    others = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return own | {point.name: point for point in others if point.name not in own}


def _command(name: str, point: EntryPoint) -> Any:
    try:
        target: Any = point.load()
    except Exception as error:  # another package's import may raise anything, and the other commands must still work
        target = _unusable(point, error)
    app = target if isinstance(target, typer.Typer) else typer.Typer(add_completion=False)
    if app is not target:
        app.command(name)(target)
    command: Any = get_command(app)
    command.name = name
    return command


def _unusable(point: EntryPoint, error: Exception) -> Callable[[], None]:
    """Return a command that stands for one that cannot be loaded: calling it raises the reason."""
    sentence = f"command {point.name}: the entry point {point.value} cannot be loaded ({type(error).__name__}: {error})"

    def command() -> None:
        raise ConfigError(f"{sentence}; fix or uninstall the package that registers it")

    command.__doc__ = "Cannot be loaded; call it to see why."
    return command
