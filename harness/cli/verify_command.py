"""The command `harness runs verify`: find damaged or missing files of runs, and move away those that can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Runs
from harness.terminal.console import SafeConsole, announce

runs = typer.Typer(add_completion=False, no_args_is_help=True, help="Check run directories.")


@runs.callback()
def _keep_subcommands() -> None:
    """Check run directories."""


@runs.command()
def verify(
    folders: Runs,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged files away that the run's command can make again.")
    ] = False,
) -> None:
    """Check every file of runs, checkpoints included, against recorded digests; exit code 1 where something is wrong."""
    announce("reading runs")

    from harness.errors import HarnessError
    from harness.lm.checkpoints import checkpoint_digests
    from harness.rundir.integrity import REMEDIES, find_faults, move_away
    from harness.rundir.reader import RunDir, find_run_folders, find_runs
    from harness.rundir.store import RunStore

    console, wrong = SafeConsole(), 0
    for folder in find_run_folders(folders):
        try:
            run: RunDir = find_runs([folder])[0]
        except HarnessError as error:
            console.say(f"{error}; {REMEDIES['restore']}")
            wrong += 1
            continue
        faults = list(find_faults(run, checkpoint_digests))
        wrong += len(faults)
        for fault in faults:
            console.say(f"{fault.sentence}; {REMEDIES[fault.remedy]}")
        state = "whole" if run.manifest.finished else "whole so far, not finished"
        console.say(f"{folder}: {len(faults) or 'nothing'} wrong" if faults else f"{folder}: {state}")
        if repair and faults:
            with RunStore(folder).locked():
                moved: list[Path] = move_away(folder, faults)
            console.say(
                f"moved {len(moved)} folders to {folder / 'damaged'}; continue with: {run.manifest.made.command}"
            )
    if wrong:
        raise typer.Exit(1)
