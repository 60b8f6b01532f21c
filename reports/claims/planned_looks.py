"""At how many seeds the claims of a file are judged: the plan that was written first, and the sentence about it.

Verdicts are given only at looks that were planned; all looks together err in at most 5 % of studies (`harness.stats.looks`).
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.rundir.reader import RunDir
from harness.stats.looks import ALPHA, FEWEST_SEEDS, look_levels
from reports.claims.claim_file import ClaimFile
from reports.formatting import format_count

RULE_OF_LOOKS = "Lan and DeMets' error-spending function of O'Brien and Fleming's type"


def find_looks(file: ClaimFile, runs: Sequence[RunDir], planned: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the numbers of seeds at which a file's claims are judged; empty where no plan is known.

    Plans are the looks registered with these claims that a run carries, and those that a run recorded when it started. The
    earliest one that allows a verdict counts, so a later change gives no new test. `planned`, from the study's file, counts
    where the runs hold no plan.
    """
    judged = judged_runs(file, runs)
    plans = [
        (each.when, each.looks) for run in judged for each in run.manifest.registered if each.claims == file.digest
    ]
    plans += [(run.manifest.made.created, run.manifest.looks) for run in judged]
    known = [looks for looks in (*(looks for _, looks in sorted(plans)), tuple(planned)) if looks]
    return next((looks for looks in known if looks[-1] >= FEWEST_SEEDS), known[0] if known else ())


def describe_looks(file: ClaimFile, runs: Sequence[RunDir], planned: Sequence[int] = ()) -> str:
    """Return one or two sentences: at which numbers of seeds claims are judged, at which levels, and what lies beyond."""
    looks, seeds = find_looks(file, runs, planned), len({run.seed for run in judged_runs(file, runs)})
    if not looks:
        return (
            f"These runs record no planned looks, so each claim is tested at {100 * ALPHA:g} % at the seeds that there are; a "
            "test after every further seed would err more often."
        )
    beyond = f" Seeds added after the look at {looks[-1]} are exploratory: they give no new {100 * ALPHA:g} %."
    return f"{list_looks(looks)}{beyond if seeds > looks[-1] >= FEWEST_SEEDS else ''}"


def list_looks(looks: Sequence[int]) -> str:
    """Return a sentence on looks that are planned, with the level of each, or on what a verdict needs."""
    if looks[-1] < FEWEST_SEEDS:
        few = format_count(looks[-1], "seed")
        return f"{few} planned, and a verdict needs {FEWEST_SEEDS}: plan more as `seeds` or `looks`."
    if len(looks) == 1:
        return f"Claims are judged once, at {looks[0]} seeds, at {100 * ALPHA:g} %."
    levels = [f"{n} seeds ({100 * level:.2g} %)" for n, level in zip(looks, look_levels(tuple(looks)), strict=True)]
    return (
        f"Claims are judged at {', '.join(levels)}: two-sided levels by {RULE_OF_LOOKS}, which spends {100 * ALPHA:g} % over "
        "all looks."
    )


def judged_runs(file: ClaimFile, runs: Sequence[RunDir]) -> list[RunDir]:
    """Return the runs of the adapters that a file's claims name."""
    adapters = {name for claim in file.claims for name in claim.parsed.adapters}
    return [run for run in runs if run.adapter in adapters]
