"""The command `claims`: check a claims file, and register it before the first run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Include, Out, Overrides, read_suite
from harness.errors import ConfigError
from harness.terminal.console import SafeConsole

if TYPE_CHECKING:
    from harness.config.suite import Suite

ClaimsName = Annotated[str, typer.Argument(help="A file of claims, or a shipped one's name (aopd).", metavar="FILE")]

claims = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Check claims, or register them before the first run."
)


@claims.command()
def check(file: ClaimsName) -> None:
    """Read a file of claims and print in which order its primary claims are tested."""
    from reports.claims.claim_file import read_claims

    console, found = SafeConsole(), read_claims(file)
    by_name = {claim.name: claim for claim in found.claims}
    for place, name in enumerate(found.primary, start=1):
        console.say(f"{place}. {name}: {by_name[name].text} ({by_name[name].expression})")
    others = [name for name in by_name if name not in found.primary]
    console.say(f"exploratory: {', '.join(others) or 'none'}")


@claims.command()
def register(
    file: ClaimsName,
    suite: Annotated[str | None, typer.Option(help="The suite whose runs the claims speak of.")] = None,
    study: Annotated[
        str | None, typer.Option(help="In place of a suite, a study: all its suites are registered.")
    ] = None,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    include_path: Include = None,
) -> None:
    """Write down what will be judged, before the first run: the digests of claims and suite, and the time.

    Runs of the suite that start afterwards with the same --out carry it in their manifests, and reports say whether the claims
    were registered before the first run.
    """
    from harness.rundir.reader import find_runs
    from harness.rundir.registered_claims import append_registrations
    from reports.claims.claim_file import read_claims
    from reports.claims.planned_looks import list_looks
    from reports.claims.registration import registrations_of

    if (suite is None) == (study is None):
        raise ConfigError("name one of --suite and --study: whose runs the claims speak of")
    console, found = SafeConsole(), read_claims(file)
    suites = [read_suite(suite, overrides, include_path, None)] if suite else _suites_of(study or "", overrides, out)
    folders = [folder for each in suites if any((folder := out / each.name).glob("*/*/*/manifest.json"))]
    started = find_runs(folders)
    place = append_registrations(out, registrations_of(found, suites))
    names = ", ".join(each.name for each in suites)
    console.say(f"registered {found.title!r} ({found.digest}) for {names} in {place}")
    plans = dict.fromkeys((each.seeds, each.planned_looks) for each in suites)
    for seeds, looks in plans:
        console.say(f"planned: seeds {', '.join(map(str, seeds))}. {list_looks(looks)}")
    if started:
        console.say(f"{len(started)} of these runs started before; a report names them")


def _suites_of(study: str, overrides: list[str] | None, out: Path) -> list[Suite]:
    """Return the suites of a study's runs."""
    from harness.pipeline.sweeps.study_runs import plan_study

    by_name = {spec.suite.name: spec.suite for spec in plan_study(study, overrides or [], out).specs}
    return list(by_name.values())
