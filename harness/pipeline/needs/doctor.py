"""`harness doctor`: print what is installed and missing, and what the runs of a suite need on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from harness.config.models import Pretrained, Scratch
from harness.config.run_spec import RunSpec
from harness.errors import HarnessError
from harness.evaluation.groups import EvaluationPlan, load_evaluation_plan
from harness.lm.chat import Renderer
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.build.model_source import tokenizer_or_reason
from harness.pipeline.needs.extrapolation import seconds_of_all
from harness.pipeline.needs.machine import Finding, free_bytes, look_at_machine
from harness.pipeline.needs.memory_estimate import config_file
from harness.pipeline.needs.probe import STEPS, Probe, build_models, probe_run
from harness.pipeline.needs.run_estimate import (
    LIBRARIES,
    RunEstimate,
    available_memory,
    estimate_run,
    make_fit,
    needs_table,
    parts_table,
    stages_table,
)
from harness.pipeline.processes.devices import resolve_device
from harness.pipeline.sweeps.sweep import default_workers
from harness.rundir.shared.remote_stages import RemoteStages
from harness.teachers.server import Server
from harness.teachers.teacher import TeacherKind
from harness.terminal.byte_sizes import show_bytes
from harness.terminal.console import SafeConsole


def examine_machine(console: SafeConsole, out: Path) -> None:
    """Print what this machine has, what is missing, and the command that installs it; `out` is the folder of runs."""
    _print_findings(console, "this machine", look_at_machine(out))


def examine_suite(console: SafeConsole, specs: Sequence[RunSpec], seeds: int, minutes: float) -> None:
    """Print a suite's models and data, and the memory, time and disk of a run of each method and of all of their runs.

    `specs` has a run of each method, of which each is done at `seeds` seeds. Probes, short real runs of at most `minutes`
    together, measure what a run takes; 0 leaves them out.
    """
    suite = specs[0].suite
    library = TaskLibrary(suite.include, suite.data)
    evaluated = load_evaluation_plan(library, suite)
    tasks = evaluated.tasks
    specs = [spec.counted(lambda task, limit: len(tasks[task].training_docs(limit))) for spec in specs]
    _print_findings(console, f"suite {suite.name}", [*_models(specs[0]), *_elsewhere(specs[0]), *_licences(tasks)])
    prompting = tokenizer_or_reason(suite.student, tasks, library)
    renderer = None if isinstance(prompting, str) else prompting[0]
    found = [estimate_run(spec, evaluated, renderer) for spec in specs]
    estimates = [estimate for estimate in found if isinstance(estimate, RunEstimate)]
    if not estimates:
        console.say(f"{found[0]}, so memory and disk are not estimated; download it, or give a folder", wrap=True)
        return
    console.print(needs_table(estimates))
    largest = max(estimates, key=lambda estimate: estimate.peak)
    console.print(parts_table(largest))
    probes = _probe(console, specs, evaluated, minutes)
    gpus = suite.parallel.processes if any(probe.memory_of == "gpu" for probe in probes.values()) else 0
    for estimate in estimates:
        probe = probes.get(estimate.spec.entry)
        console.print(stages_table(estimate, probe.times.stages if probe is not None else {}, gpus))
    _print_fit(console, largest, probes, tasks, renderer)
    _print_disk(console, estimates, probes, seeds)
    if probes:
        _print_times(console, specs, probes, seeds, gpus)


def _probe(
    console: SafeConsole, specs: Sequence[RunSpec], evaluated: EvaluationPlan, minutes: float
) -> dict[str, Probe]:
    """Return the probe of each method, by entry, as far as the minutes last."""
    models = [specs[0].suite.student, *(stage.teacher for stage in specs[0].stages)]
    absent = [model.path for model in models if isinstance(model, Pretrained) and config_file(model) is None]
    if minutes <= 0 or absent:
        why = f"{absent[0]} is not here" if absent else "--probe-minutes is 0"
        console.say(f"no probe: {why}, so times are not known", wrap=True)
        return {}
    for spec in specs:
        try:
            build_models(spec, lambda sentence: console.say(sentence, wrap=True))
        except (HarnessError, BrokenProcessPool) as error:
            console.say(f"no probe: the models cannot be built ({error}), so times are not known", wrap=True)
            return {}
    probes, until = dict[str, Probe](), time.monotonic() + 60 * minutes
    for spec in specs:
        left = (until - time.monotonic()) / 60
        if left <= 0:
            console.say(
                f"no times of {spec.entry}: no probe minutes are left; allow more with --probe-minutes", wrap=True
            )
            continue
        console.say(
            f"probe: a run of {spec.entry} with {STEPS} steps a stage, for {left:.3g} minutes at most ...", wrap=True
        )
        found = probe_run(spec, evaluated, left)
        if isinstance(found, str):
            console.say(f"no times of {spec.entry}: {found}", wrap=True)
        else:
            probes[spec.entry] = found
    return probes


def _print_times(
    console: SafeConsole, specs: Sequence[RunSpec], probes: Mapping[str, Probe], seeds: int, gpus: int
) -> None:
    runs, took = seeds * len(probes), sum(probe.took for probe in probes.values())
    every = seconds_of_all([probe.times for probe in probes.values()], seeds)
    table = Table(title=f"hours, measured by probes of {took:.0f} seconds")
    table.add_column("")
    for name in ("training", "evaluation", "in all", *(["GPU-hours"] if gpus else [])):
        table.add_column(name, justify="right")

    def add(what: str, *seconds: float) -> None:
        shown = [f"{each / 3600:.3g}" for each in seconds]
        of_gpus = [f"{gpus * seconds[-1] / 3600:.3g}"] if gpus else []
        table.add_row(what, *[""] * (3 - len(shown)), *shown, *of_gpus)

    for entry, probe in probes.items():
        add(f"one run of {entry}", probe.times.train, probe.times.evaluate, probe.times.total)
    add(f"all {runs} runs", every)
    console.print(table)
    if len(specs) < (known := len(specs[0].suite.adapters)):
        console.say(f"the suite has {known} methods; --adapter names others, such as --adapter opd,aopd", wrap=True)
    planned = [spec for spec in specs if spec.entry in probes for _ in range(seeds)]
    workers = default_workers(planned)
    side_by_side = (
        f"; `harness sweep` does {workers} at a time here, so divide by up to {workers}" if workers > 1 else ""
    )
    console.say(
        f"all runs are counted one after another, models built before, with what they share once{side_by_side}",
        wrap=True,
    )


def _print_fit(
    console: SafeConsole,
    estimate: RunEstimate,
    probes: Mapping[str, Probe],
    tasks: Mapping[str, Task],
    renderer: Renderer | None,
) -> None:
    available, whose = available_memory(estimate.spec.suite.device)
    if probes:
        # The measured memory of a process includes its libraries.
        available += LIBRARIES if whose == "this machine" else 0
        entry, probe = max(probes.items(), key=lambda each: max(each[1].peak_train, each[1].peak_evaluate))
        console.say(
            f"memory: a run of {entry} takes {show_bytes(probe.peak_train)} of its {probe.memory_of} in training and "
            f"{show_bytes(probe.peak_evaluate)} in evaluation (measured); {whose} has {show_bytes(available)} free",
            wrap=True,
        )
        needed = max(probe.peak_train, probe.peak_evaluate)
    else:
        needed = float(estimate.peak)
        how = "" if estimate.measured_prompts else ", for prompts of 512 tokens, as the tokenizer is not here"
        console.say(
            f"memory: {show_bytes(needed)} (estimated{how}); {whose} has {show_bytes(available)} free", wrap=True
        )
    # What a process takes beside the tensors that are estimated, such as its libraries, it takes with smaller batches too.
    beside = max(LIBRARIES if probes and whose == "this machine" else 0.0, needed - estimate.peak)
    if estimate.peak + beside > available:
        console.say(f"this does not fit: {make_fit(estimate, available - beside, tasks, renderer)}", wrap=True)
    if (share := getattr(estimate.spec.suite.engine, "gpu_memory_utilization", None)) is not None:
        console.say(
            f"the engine of backend {estimate.spec.suite.backend} takes another {share:.0%} of a GPU", wrap=True
        )
    on_gpu = resolve_device(estimate.spec.suite.device).startswith("cuda")
    if on_gpu and estimate.spec.suite.backend == "hf":
        console.say("backend hf decodes in this process; on a GPU vLLM is recommended: --set backend=vllm", wrap=True)
    if not on_gpu and estimate.student.parameters > 3e8:
        console.say("there is no GPU, and a student of this size trains for days on a CPU", wrap=True)


def _print_disk(
    console: SafeConsole, estimates: Sequence[RunEstimate], probes: Mapping[str, Probe], seeds: int
) -> None:
    samples = max((probe.times.sample_bytes for probe in probes.values()), default=0.0)
    each, runs = max(estimate.disk for estimate in estimates) + samples, seeds * len(estimates)
    free = free_bytes(estimates[0].spec.out)
    of_samples = f", of it {show_bytes(samples)} answers" if samples else ", answers aside"
    enough = "" if runs * each < free else "; that is not enough, choose another --out"
    console.say(
        f"disk: {show_bytes(each)} a run{of_samples}, {show_bytes(runs * each)} for {runs} runs; "
        f"{show_bytes(free)} are free{enough}",
        wrap=True,
    )


def _models(spec: RunSpec) -> Iterator[Finding]:
    named = {"student": spec.suite.student, **{f"teacher of {s.name}": s.teacher for s in spec.stages if s.own_teacher}}
    named |= {"teacher": spec.suite.teacher} if spec.suite.teacher is not None else {}
    for what, model in named.items():
        if isinstance(model, Scratch):
            yield Finding(what, f"built here, {model.strength}")
        elif isinstance(model, Pretrained):
            file = config_file(model)
            licence = _licence_of(file.parent) if file is not None else ""
            found = (
                f"{model.path}: {'here' if file is not None else 'not here'}{f', licence {licence}' if licence else ''}"
            )
            yield Finding(what, found, "" if file is not None else f"hf download {model.path}")
        elif isinstance(model, TeacherKind):
            yield _served(what, model)


def _elsewhere(spec: RunSpec) -> Iterator[Finding]:
    """Yield what the suite names outside of this machine's folders, other than models."""
    if spec.suite.storage is not None:
        store = RemoteStages.of(spec)
        yield Finding("storage", f"{spec.suite.storage}: {_refusal(store.examine) or store.examine()}")


def _served(what: str, model: TeacherKind) -> Finding:
    """Return whether a teacher that is not a model of the run's process answers, or by which program a run starts it."""
    programs: list[str] = []

    def note(server: Server) -> Server:
        assert server.start is not None
        programs.append(server.start.command[0])
        return server

    model.with_servers(note)
    if missing := [program for program in programs if shutil.which(program) is None]:
        return Finding(
            what, f"of kind {model.kind}: {missing[0]} is not installed", "pip install 'continual-harness[vllm]'"
        )
    if programs:
        return Finding(what, f"of kind {model.kind}: each command starts it with {programs[0]}")
    hasty = model.model_copy(update={"start_deadline": 3.0, "timeout": 3.0}) if isinstance(model, Server) else model
    return Finding(what, f"of kind {model.kind}: {_refusal(hasty.check) or 'ready'}")


def _refusal(check: Callable[[], object]) -> str:
    """Return what a check refuses, empty for nothing."""
    try:
        check()
    except HarnessError as error:
        return str(error)
    return ""


def _licences(tasks: Mapping[str, Task]) -> Iterator[Finding]:
    """Yield the licences that task files name, each with all tasks that have it."""
    found: dict[str, list[str]] = {}
    for name, task in tasks.items():
        metadata = task.config.metadata
        named = (metadata.get("licence") or metadata.get("license")) if isinstance(metadata, dict) else None
        if named:
            found.setdefault(str(named), []).append(name)
    for licence, names in found.items():
        yield Finding(f"data of {', '.join(names)}", licence)


def _licence_of(folder: Path) -> str:
    """Return the licence in the front matter of a model's README.md; empty where it names none."""
    file = folder / "README.md"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[:60] if file.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("license:"))
    return next(named, "")


def _print_findings(console: SafeConsole, title: str, findings: Iterator[Finding] | list[Finding]) -> None:
    table = Table(title=title, show_header=False)
    for finding in findings:
        text = f"{finding.found}\n  {finding.help}" if finding.help else finding.found
        table.add_row(escape(finding.what), escape(text))
    if table.row_count:
        console.print(table)
