"""`make bench`: OPD and AOPD against TRL's trainer and each other, our generation, and the utilisation of the machine.

These run on the tiny suite's models, in one process on one thread, alternately in each repetition. Then follow the
log-probability operation at a real vocabulary, reports, start-up times and scaling, each measured in separate processes.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from adapters.aopd import AOPD
from adapters.opd import OPD
from benchmarks import report, report_growth, start_up
from benchmarks.engines import vllm_weights
from benchmarks.engines.generation import engine_tokens, transformers_tokens
from benchmarks.logprobs import logprob_speed as logprobs
from benchmarks.measure import Measurement, in_turn, per_second
from benchmarks.results_page import BenchmarkResults, page
from benchmarks.scale import scale_section
from benchmarks.setting import Setting, make_setting
from benchmarks.steps import Steps, our_steps
from benchmarks.trl_step import MISSING, installed, settings_of, trl_steps
from benchmarks.utilisation import peak_rate, student_rate
from harness.config.processor import cpu_has_bfloat16
from harness.errors import HarnessError
from harness.pipeline.processes.devices import limit_threads
from harness.rundir.process.session import this_session

RESULTS = Path(__file__).parent / "RESULTS.md"
TRL = "TRL `DistillationTrainer`"
THREADS = 1
SCALE_ROUNDS = 3
# Without instructions for it, bfloat16 takes so long on a CPU that nobody trains in it.
PRECISIONS: tuple[Literal["bfloat16"] | None, ...] = ("bfloat16", None) if cpu_has_bfloat16() else (None,)
T = TypeVar("T")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    suite: Annotated[
        str, typer.Option(help="A suite's name or file; its models and first task are measured.")
    ] = "tiny",
    repetitions: Annotated[int, typer.Option(min=1, help="Rounds that count; one more comes first.")] = 15,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps of a repetition that count; one more comes first.")
    ] = 3,
    logprob_rounds: Annotated[
        int,
        typer.Option(min=0, help="Rounds of the log-probability operation, up to ten minutes each; 0 leaves it out."),
    ] = 3,
    report_rounds: Annotated[int, typer.Option(min=0, help="Builds of a large report; 0 leaves it out.")] = 3,
    start_rounds: Annotated[int, typer.Option(min=0, help="Starts of each command; 0 leaves them out.")] = 5,
    scale_runs: Annotated[
        int,
        typer.Option(min=0, help="Runs of a sweep over workers; 0 leaves out all over processes, servers, workers."),
    ] = 12,
    vllm_rounds: Annotated[
        int, typer.Option(min=0, help="Cold starts of vLLM, where it is installed; 0 leaves them out.")
    ] = 5,
    out: Annotated[Path, typer.Option(help="The page to write.")] = RESULTS,
) -> None:
    """Measure everything; the page is written after each section, so that a failing section does not lose earlier ones."""
    _quiet()
    if not out.parent.is_dir():
        raise typer.BadParameter(f"{out.parent} is not a folder; make it first, or give another --out")
    limit_threads(THREADS)
    try:
        settings = [make_setting(suite, steps, autocast) for autocast in PRECISIONS]
    except HarnessError as error:
        raise typer.BadParameter(str(error)) from error
    here = this_session()
    findings = measure(settings, repetitions)
    if not vllm_weights.installed():
        findings = replace(findings, notes=[*findings.notes, f"{vllm_weights.MISSING}."])
    out.write_text(page(findings, here, THREADS, repetitions), encoding="utf-8")
    for section in _sections(settings[-1], logprob_rounds, report_rounds, start_rounds, scale_runs, vllm_rounds):
        findings = replace(findings, sections=[*findings.sections, section])
        out.write_text(page(findings, here, THREADS, repetitions), encoding="utf-8")
    typer.echo(out.read_text(encoding="utf-8"))


def _sections(
    setting: Setting, logprob_rounds: int, report_rounds: int, start_rounds: int, scale_runs: int, vllm_rounds: int
) -> Iterator[str]:
    """Yield the sections that are asked for, each as soon as it is measured."""
    if logprob_rounds:
        yield logprobs.section(logprob_rounds, THREADS)
    if report_rounds:
        yield report.section(report_rounds)
        yield report_growth.section()
    if start_rounds:
        yield start_up.section(start_rounds)
    if scale_runs:
        yield scale_section.section(scale_runs, SCALE_ROUNDS)
    if vllm_rounds and vllm_weights.installed():
        yield vllm_weights.section(setting, vllm_rounds, THREADS)


def measure(settings: Sequence[Setting], repetitions: int) -> BenchmarkResults:
    """Return all figures; where TRL is not installed, its figures are left out and a note says so."""
    steps = in_turn(_merged(_trainers(setting) for setting in settings), repetitions)
    rates = in_turn(_merged(_rates(setting) for setting in settings), repetitions)
    precisions = [setting.precision for setting in settings]
    rows = [*trl_rows(steps, precisions), *aopd_rows(steps, precisions), *_rate_rows(rates, precisions)]
    return BenchmarkResults(rows, steps, notes(settings[0]))


def _trainers(setting: Setting) -> dict[str, Callable[[int], Steps]]:
    measures: dict[str, Callable[[int], Steps]] = {
        "OPD": lambda seed: our_steps(OPD(), setting, seed),
        "AOPD": lambda seed: our_steps(AOPD(), setting, seed),
    }
    if installed():
        measures[TRL] = lambda seed: trl_steps(setting, seed)
    return {f"{name}, {setting.precision}": work for name, work in measures.items()}


def _rates(setting: Setting) -> dict[str, Callable[[int], float]]:
    rates = {"student": student_rate(setting), "peak": peak_rate(setting.precision)}
    # Rollouts are drawn outside autocast, so one precision is enough.
    if setting.precision == "float32":
        rates |= {
            "engine": per_second(engine_tokens(setting)),
            "transformers": per_second(transformers_tokens(setting)),
        }
    return {f"{name}, {setting.precision}": work for name, work in rates.items()}


def trl_rows(steps: Mapping[str, Sequence[Steps]], precisions: Sequence[str]) -> Iterator[Measurement]:
    """Compare whole steps with TRL's: in each precision, and with TRL's faster precision."""
    if not any(name.startswith(TRL) for name in steps):
        return
    for precision in precisions:
        yield _whole_step("OPD", precision, steps, [precision])
    yield _whole_step("OPD", precisions[0], steps, precisions)
    yield _whole_step("AOPD", precisions[0], steps, precisions)


def _whole_step(ours: str, precision: str, steps: Mapping[str, Sequence[Steps]], against: Sequence[str]) -> Measurement:
    rates = {name: [s.tokens_per_second for s in found] for name, found in steps.items()}
    theirs = [max(values) for values in zip(*(rates[f"{TRL}, {p}"] for p in against), strict=True)]
    baseline = f"{TRL}, {'the faster of both' if len(against) > 1 else against[0]}"
    return Measurement(
        f"{ours} step, {precision}", "response tokens/s", rates[f"{ours}, {precision}"], baseline, theirs
    )


def aopd_rows(steps: Mapping[str, Sequence[Steps]], precisions: Sequence[str]) -> Iterator[Measurement]:
    """Compare AOPD's and OPD's steps without generation, so that both work on equal responses."""

    def milliseconds(name: str) -> list[float]:
        return [1000 * (s.teacher + s.rest) / s.count for s in steps[name]]

    for precision in precisions:
        what, same = f"AOPD step without generation, {precision}", "OPD, same responses"
        yield Measurement(
            what, "ms, less is better", milliseconds(f"AOPD, {precision}"), same, milliseconds(f"OPD, {precision}")
        )


def _rate_rows(rates: Mapping[str, list[float]], precisions: Sequence[str]) -> Iterator[Measurement]:
    generate = "transformers `generate`"
    yield Measurement(
        "generation", "response tokens/s", rates["engine, float32"], generate, rates["transformers, float32"]
    )
    for precision in precisions:
        what, product = f"student, forward and backward, {precision}", f"fastest {precision} matrix product"
        yield Measurement(what, "GFLOP/s", rates[f"student, {precision}"], product, rates[f"peak, {precision}"])


def _merged(parts: Iterable[dict[str, T]]) -> dict[str, T]:
    return {name: work for part in parts for name, work in part.items()}


def notes(setting: Setting) -> list[str]:
    """Return notes on how the figures were made."""
    training = setting.context.training
    task = " and ".join(setting.context.tasks)
    lines = [
        f"Task {task}, {training.prompts_per_step} prompts a step, at most {training.max_new_tokens} new tokens, "
        f"{setting.steps} steps a repetition after one that is not counted. All trainers get the same prompts and a "
        "learning rate of nearly zero, so that response lengths stay those of the start.",
        "Weights are float32; bfloat16 is autocast of forward and backward passes with eager attention, as the tiny "
        "suite trains; TRL gets the same models in the same precision. Our rollouts are drawn in float32; TRL's trainer "
        "chooses the precision of its own rollouts.",
        "The student's operations are all that run, including padding and the head's recomputation.",
    ]
    if not installed():
        return [*lines, f"{MISSING}."]
    options = ", ".join(f"{key}={value}" for key, value in settings_of(setting).items())
    return [
        *lines,
        "TRL is always on-policy, one response to a prompt; beta=1 is the reverse KL over the whole vocabulary, which "
        "OPD estimates from the sampled token. Its steps are timed by a callback inside its own trainer; its teacher "
        f"phase is the backbone alone, the teacher's head is in the rest. Settings: {options}.",
    ]


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("accelerate").setLevel(logging.ERROR)


if __name__ == "__main__":
    app()
