"""The command `plan`: how many seeds, items and answers a suite needs, before its runs start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Include, Overrides, SuiteName, read_suite, whole_numbers
from harness.config.base import FIRST_LOOK
from harness.errors import ConfigError
from harness.terminal.console import SafeConsole, announce
from reports.planning import EFFECT

if TYPE_CHECKING:
    from harness.config.suite import Suite
    from reports.claims.claim_file import ClaimEntry
    from reports.planning.planned_runs import PlannedRuns

CLAIMED = {
    "learning_accuracy": "learns all tasks",
    "average_accuracy": "ends higher",
    "forgetting_chaudhry": "forgets more",
    "probe_change": "keeps more of the probes",
}


def plan(
    suite: SuiteName,
    effect: Annotated[float, typer.Option(min=0, help="The difference to find, in points.")] = EFFECT,
    claims: Annotated[
        list[str] | None, typer.Option(help="A file of claims, or a shipped one's name; default: two methods' figures.")
    ] = None,
    pilot: Annotated[
        list[Path] | None, typer.Option(help="Finished runs, or folders that hold some; default: shipped priors.")
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="A study of the suite, whose runs are planned: its seeds, starts and learning rates."),
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Show designs whose runs take no longer.")] = None,
    looks: Annotated[
        str | None,
        typer.Option(
            help="Numbers of seeds at which claims are judged, such as 3,5,10; default: the suite's or study's."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="An evaluation profile; default: each claim's own, else the first.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Also write CSV, PNG and SVG into this folder.")] = None,
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Plan a comparison: variances, the cheapest seeds × items × answers that find an effect, and what is not resolved."""
    announce("reading runs" if pilot else f"reading suite {suite}")

    from reports.claims.claim_file import read_claims
    from reports.data.methods import find_methods
    from reports.planning.pilot import plan_from_pilot
    from reports.planning.power_plan import plan_all
    from reports.planning.shipped_priors import plan_from_priors
    from reports.planning.show_plan import print_power_plan, write_power_plan

    loaded = read_suite(suite, overrides, include_path, None)
    seeds_looked = _looks(looks)
    methods = find_methods(pilot, least=1) if pilot else []
    files = [read_claims(name) for name in claims or []]
    named = [(claim, profile or file.profile_of(claim)) for file in files for claim in file.claims]
    if not named:
        known = [method.first.adapter for method in methods if not method.control] or _compared(loaded)
        named = [(claim, profile) for claim in compare_two(list(dict.fromkeys(known)))]
    runs = _planned_runs(loaded, study, overrides or [])
    seeds_looked = seeds_looked or list(runs.base.looks or ())
    subjects = list(plan_from_pilot(named, methods, runs) if methods else plan_from_priors(named, runs))
    budget = math.inf if hours is None else hours
    found = plan_all(subjects, effect, budget, seeds_looked)
    console = SafeConsole()
    print_power_plan(console, found, budget, seeds_looked)
    for file in write_power_plan(found, out, budget) if out else ():
        typer.echo(f"written: {file}", err=True)


def compare_two(adapters: Sequence[str]) -> list[ClaimEntry]:
    """Return a claim per figure of CLAIMED that the second of two methods exceeds the first."""
    from reports.claims.claim_file import ClaimEntry

    if len(adapters) < 2:
        raise ConfigError(
            f"a plan compares two methods, found {', '.join(adapters) or 'none'}; name two, or give --claims"
        )
    base, other = adapters[:2]
    return [
        ClaimEntry(
            name=figure,
            text=f"{other} {text} than {base}",
            expression=f"metric({other}, {figure}) > metric({base}, {figure})",
            unit="points",
            smallest_effect=0,
        )
        for figure, text in CLAIMED.items()
    ]


def _planned_runs(suite: Suite, study: str | None, overrides: Sequence[str]) -> PlannedRuns:
    """Return the runs that are planned: those of a study, or all of the suite."""
    from harness.config.run_spec import plan_runs
    from reports.planning.planned_runs import PlannedRuns

    if study is None:
        return PlannedRuns(suite, plan_runs(suite, list(suite.adapters), suite.seeds, "default", Path("runs")))

    from harness.pipeline.sweeps.study_runs import plan_study
    from reports.study.study_plan import planned_runs_of

    runs = planned_runs_of(plan_study(study, overrides))
    if runs.base.name != suite.name:
        raise ConfigError(f"study {study} is of suite {runs.base.name}, not {suite.name}; plan {runs.base.name}")
    return runs


def _compared(suite: Suite) -> list[str]:
    """Return the suite's entries that train something, in its order."""
    return [name for name, entry in suite.adapters.items() if (entry.adapter or name) != "none"]


def _looks(text: str | None) -> list[int]:
    looks = whole_numbers("--looks", text) if text else []
    if looks and (looks[0] < FIRST_LOOK or looks != sorted(set(looks))):
        raise ConfigError(
            f"--looks {text}: expected increasing numbers of seeds from {FIRST_LOOK} on, for example 3,5,10"
        )
    return looks
