"""The commands that read finished and running runs: `report`, `compare` and `watch`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from harness.cli.options import Runs, whole_numbers
from harness.errors import ConfigError
from harness.terminal.console import SafeConsole, announce, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from reports.claims.claim_file import ClaimFile
    from reports.claims.evidence import Evidence
    from reports.claims.judge_claims import JudgedSetting, Verdict

Claims = Annotated[
    list[str] | None, typer.Option(help="A file of claims to judge on these runs, or a shipped one's name (aopd).")
]


def report(
    runs: Runs,
    out: Annotated[Path | None, typer.Option(help="Default: `report` in the first folder.")] = None,
    grader: Annotated[
        str, typer.Option(help="Show the scores that `harness regrade --grader` gave, where a task offers it.")
    ] = "",
    claims: Claims = None,
) -> None:
    """Render report.html and report.md with figures and tables from run directories."""
    announce("reading runs")

    console, folder = SafeConsole(), out or runs[0] / "report"
    with waiting("drawing the report"):
        from reports.data.frames import load_frames
        from reports.report.build import write_report
        from reports.report.report_data import ReportData

        files = _read_claim_files(claims or [])
        report_data = ReportData(load_frames(runs, grader), files)
        page = write_report(report_data, folder)
    console.say(f"report: {page}")
    if files:
        show_by_setting(console, files, report_data.judged, folder)


def compare(
    methods: Annotated[
        list[Path], typer.Argument(help="Methods' folders (runs/tiny/opd) or single runs, the baseline first.")
    ],
    out: Annotated[Path | None, typer.Option(help="Also write Markdown, LaTeX and CSV into this folder.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Print markdown, csv or latex in place of the tables.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="The last stage that counts, e.g. 2; or two, e.g. 1,4, to compare a run with itself."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Comma-separated; show these tasks alone.")] = None,
    order: Annotated[str | None, typer.Option(help="The order of the stages, where a folder holds several.")] = None,
    profile: Annotated[str, typer.Option(help="An evaluation profile; default: the suite's first.")] = "",
    grader: Annotated[str, typer.Option(help="Scores that `harness regrade --grader` gave.")] = "",
    margin: Annotated[
        float, typer.Option(min=0, help="Points within which learning counts as matched, so that forgetting is judged.")
    ] = 5.0,
    shared_items: Annotated[
        bool, typer.Option(help="Where evaluations hold other items, compare those that both have.")
    ] = False,
    claims: Claims = None,
) -> None:
    """Compare methods by paired differences: learned, forgotten, entropy, final scores, with what the sample could show."""
    with waiting("comparing runs"):
        from reports.compare.comparison import Comparison, StageComparison
        from reports.compare.headline import sentences_of
        from reports.compare.render_comparison import FORMATS, print_comparison, render_comparison, write_comparison
        from reports.data.methods import find_methods

        if format_ not in (None, *FORMATS):
            raise ConfigError(f"--format {format_}: expected one of {', '.join(FORMATS)}")
        files, stages = _read_claim_files(claims or []), _stages(stage, with_claims=bool(claims))
        found = find_methods(methods, order=order, profile=profile, grader=grader, least=1 if len(stages) == 2 else 2)
        tasks = task.split(",") if task else []
        if len(stages) == 2:
            compared, sentences = StageComparison(found, *stages, tasks=tasks), []
        else:
            compared = Comparison(found, stages[0] if stages else None, tasks, shared_items, margin / 100)
            sentences = [] if tasks else sentences_of(compared)  # they are about all tasks
        compared.rows  # noqa: B018 - computes the rows while the terminal says so
    for fault in dict.fromkeys(fault.sentence for method in found for fault in method.frames.faults):
        typer.echo(f"warning: {fault}", err=True)
    console = SafeConsole()
    if format_ is None:
        print_comparison(console, compared)
        for sentence in sentences:
            console.print(escape(sentence), highlight=False)
    else:
        typer.echo(render_comparison(compared, format_, sentences))
    if out:
        _name_files(write_comparison(compared, out, sentences))
    if files:
        from reports.claims.evidence import Evidence
        from reports.claims.judge_claims import judge_claims

        evidence = Evidence(found)
        _show_verdicts(console, files, evidence, judge_claims(files, evidence), out, format_)


def watch(
    runs: Runs,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option(help="Look once and leave.")] = False,
) -> None:
    """Follow runs from another terminal: stage, step, time left, entropy and reward, until all are finished."""
    from reports.terminal.watch import show_until_finished

    show_until_finished(SafeConsole(), runs, every, once)


def _stages(stage: str | None, with_claims: bool) -> list[int]:
    """Return the stages of `--stage`: none, the last that counts, or two to compare a run with itself."""
    stages = whole_numbers("--stage", stage) if stage else []
    if len(stages) > 2:
        raise ConfigError(f"--stage {stage}: expected one stage, or two to compare a run with itself")
    if with_claims and stages:
        raise ConfigError(
            "--claims is judged at the stages that its file names, whatever --stage says; give one of the two"
        )
    return stages


def _read_claim_files(names: Sequence[str]) -> list[ClaimFile]:
    """Read claims files by path, or shipped ones by name; raises `ConfigError` before any slow work."""
    from reports.claims.claim_file import read_claims

    return [read_claims(name) for name in names]


def show_by_setting(
    console: Console, files: Sequence[ClaimFile], judged: Sequence[JudgedSetting], folder: Path
) -> None:
    """Print the verdicts of a report, each suite and order separately, and write them next to it."""
    for each in judged:
        if len(judged) > 1:
            console.print(f"{each.suite}, {each.order}", highlight=False)
        # Names come from run directories, which may be others': none may lead out of the folder.
        name = re.sub(r"[^\w.-]", "_", f"claims_{each.suite}_{each.order}")
        _show_verdicts(console, files, each.evidence, each.verdicts, folder if len(judged) == 1 else folder / name)


def _show_verdicts(
    console: Console,
    files: Sequence[ClaimFile],
    evidence: Evidence,
    found: Sequence[Verdict],
    folder: Path | None,
    kind: str | None = None,
) -> None:
    """Print verdicts, as text of a format if `kind` is given; also write them to `folder`."""
    from reports.claims.registration import describe_plan
    from reports.claims.render_verdicts import print_verdicts, render_verdicts, write_verdicts

    registered = [describe_plan(file, evidence.runs) for file in files]
    if kind:
        typer.echo(f"\n{render_verdicts(found, files, kind, registered)}")
    else:
        print_verdicts(console, found)
        for file, sentence in zip(files, registered, strict=True):
            console.print(f"{file.title}. {sentence}", markup=False, highlight=False)
    if folder:
        _name_files(write_verdicts(found, files, folder, registered))


def _name_files(written: Sequence[Path]) -> None:
    """Name what was written on stderr, so that a table on stdout can be piped."""
    for file in written:
        typer.echo(f"written: {file}", err=True)
