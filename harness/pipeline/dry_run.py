"""The dry run: print the resolved suite, its stages, the work ahead, and the checks of tasks and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from harness.config.base import is_mapping
from harness.config.models import Chat, Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.evaluation.groups import EvaluationPlan, load_evaluation_plan
from harness.lm.chat import Renderer
from harness.lm.checkpoints import allow_own_code
from harness.lmeval.checks import check_stage_task, check_test_prompts, check_training_prompts, cut_references
from harness.lmeval.library import TaskLibrary
from harness.lmeval.overlap import stream_overlap
from harness.lmeval.task import Task
from harness.lmeval.trial import describe_items, item_warnings, try_task
from harness.pipeline.adapter_checks import emulated_bfloat16
from harness.pipeline.build.model_source import tokenizer_or_reason
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from harness.pipeline.processes.devices import resolve_device
from harness.pipeline.resources import refuse_teachers, stages_on_data
from harness.rundir.records.overlap_record import OVERLAP_HEADER, Overlap
from harness.terminal.byte_sizes import show_bytes
from harness.terminal.console import SafeConsole

SAMPLED_REFERENCES = 200  # references of a task whose length a dry run measures


def print_dry_run(console: SafeConsole, specs: Sequence[RunSpec]) -> None:
    """Print the suite's settings, the stages, the work ahead and the checks of tasks and prompts; write nothing."""
    suite = specs[0].suite
    allow_own_code(suite.trust_remote_code)
    _print_settings(console, specs)
    library = TaskLibrary(suite.include, suite.data)
    evaluated = load_evaluation_plan(library, suite)
    cells, tasks = evaluated.cells, evaluated.tasks
    specs = [spec.counted(lambda task, limit: len(tasks[task].training_docs(limit))) for spec in specs]
    for name in specs[0].trained:
        check_stage_task(tasks[name])
    console.print(_stage_table(specs[0], evaluated))
    console.print(_work_table(specs, cells))
    prompting = tokenizer_or_reason(suite.student, tasks, library)
    _print_needs(console, specs, evaluated, prompting)
    for task in tasks.values():
        _print_items(console, suite, task)
    entries = {spec.entry: spec for spec in specs}
    fits: dict[tuple[Any, ...], str] = {}
    for entry, spec in entries.items():
        refuse_teachers(spec)
        if (prompts := _prompts_of(spec)) not in fits:
            fits[prompts] = _fits(spec, evaluated, prompting)
        console.say(f"prompts under {entry}: {fits[prompts]}", wrap=True)
        _print_cut_references(console, spec, tasks, prompting)
    overlaps: list[Overlap] = []
    for spec in {_prompts_of(spec): spec for spec in entries.values()}.values():
        overlap = stream_overlap(spec, tasks, library)
        if overlap not in overlaps:
            overlaps.append(overlap)
            _print_overlap(console, overlap)
    folders = ", ".join(str(spec.path) for spec in specs)
    console.say(f"run directories: {folders}")


def _print_settings(console: SafeConsole, specs: Sequence[RunSpec]) -> None:
    """Print the suite's settings, one line per key, without null and empty ones; a run's manifest holds all of them."""
    suite = specs[0].suite
    shown = suite.model_dump(mode="json", exclude={"name", "description", "adapters", "stages", "seeds", "origin"})
    for model in ("student", "teacher"):
        shown[model] = _describe_model(getattr(suite, model))
    drift = suite.evaluation.drift
    shown["evaluation"]["drift"] = "off" if drift is None else drift.model_dump()
    entries = {spec.entry: suite.adapters[spec.entry].model_dump(mode="json") for spec in specs}
    shown |= {"backend": suite.backend}
    shown |= {"adapters": entries, "seeds": list(dict.fromkeys(spec.seed for spec in specs))}
    console.say(f"suite {suite.name}: {suite.description}".rstrip(": "), wrap=True)
    if suite.origin is not None:
        console.say(f"from {suite.origin.path}")
    for key, value in _without_empty(shown).items():
        text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
        console.say(text.strip().removeprefix("{").removesuffix("}"), wrap=True)


def _describe_model(model: Any) -> Any:
    """Return a model that is built here as its strength, any other as its settings."""
    return f"scratch {model.strength}" if isinstance(model, Scratch) else model and model.model_dump(mode="json")


def _without_empty(value: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping without null and empty values, at any depth."""
    found = {key: _without_empty(part) if is_mapping(part) else part for key, part in value.items()}
    return {key: part for key, part in found.items() if part not in (None, {}, [], "")}


def _print_needs(
    console: SafeConsole, specs: Sequence[RunSpec], evaluated: EvaluationPlan, prompting: tuple[Renderer, int] | str
) -> None:
    """Print what one run of each entry needs at most, by formulas; `harness doctor` measures it."""
    from harness.pipeline.needs.run_estimate import RunEstimate, available_memory, estimate_run, make_fit, needs_table

    renderer = None if isinstance(prompting, str) else prompting[0]
    suite = specs[0].suite
    if slow := emulated_bfloat16(suite, {spec.entry for spec in specs}, resolve_device(suite.device)):
        console.print(f"[yellow]warning:[/] {escape(slow)}", highlight=False, soft_wrap=True)
    entries = {spec.entry: spec for spec in specs}
    found = [estimate_run(spec, evaluated, renderer) for spec in entries.values()]
    if not (estimates := [each for each in found if isinstance(each, RunEstimate)]):
        console.say(f"needs not estimated: {found[0]}", wrap=True)
        return
    console.print(needs_table(estimates))
    largest = max(estimates, key=lambda each: each.peak)
    available, whose = available_memory(specs[0].suite.device)
    if largest.peak > available:
        console.say(
            f"{largest.spec.entry} does not fit the {show_bytes(available)} that {whose} has free: "
            f"{make_fit(largest, available, evaluated.tasks, renderer)}",
            wrap=True,
        )


def _stage_table(spec: RunSpec, evaluated: EvaluationPlan) -> Table:
    tasks = evaluated.tasks
    table = Table(title=f"stages of {spec.suite.name}, order {spec.order}")
    for column in ("stage", "task", "training items", "steps", "rollouts a step", "learning rate", "test items"):
        name = column == "task"  # names must not be cut; the other columns fold their headers
        table.add_column(column, justify="left" if name else "right", no_wrap=name)
    for stage in spec.stages:
        training = stage.training
        items = sum(len(tasks[name].training_docs(training.train_items)) for name in stage.trains)
        tests = sum(_test_items(spec.suite, tasks[name]) for name in stage.trains)
        rollouts = training.prompts_per_step * training.num_generations
        cells = (
            stage.index,
            ", ".join(stage.trains),
            items,
            training.steps,
            rollouts,
            f"{training.optimizer.lr:g}",
            tests,
        )
        table.add_row(*map(str, cells))
    before = {each.task for each in spec.suite.origin.trained} if spec.suite.origin else set[str]()
    for probe in evaluated.probes:
        members = evaluated.groups[probe].tasks if probe in evaluated.groups else (probe,)
        items = sum(_test_items(spec.suite, tasks[name]) for name in members)
        table.add_row("before" if probe in before else "probe", probe, "", "", "", "", str(items))
    return table


def _work_table(specs: Sequence[RunSpec], cells: dict[str, Task]) -> Table:
    """Return the estimated work of all runs; tokens are the upper bound that the budgets allow."""
    suite = specs[0].suite
    budgets = [stage.training for spec in specs for stage in spec.stages if stage.own_adapter or spec.kind != "none"]
    rollouts = sum(b.steps * b.prompts_per_step * b.num_generations for b in budgets)
    tokens = sum(b.steps * b.prompts_per_step * b.num_generations * b.max_new_tokens for b in budgets)
    stages = sum(len(spec.stages) for spec in specs)
    answers = stages * sum(_test_items(suite, task) * task.generation.get("n", 1) for task in cells.values())
    table = Table("estimated work", "", show_header=True)
    table.add_row("runs", str(len(specs)))
    table.add_row("training steps", f"{sum(b.steps for b in budgets):,}")
    table.add_row("rollouts, or references trained on", f"{rollouts:,}")
    table.add_row("response tokens, at most", f"{tokens:,}")
    kinds, what = ("task x stage x profile", "answers") if suite.evaluation.profiles else ("task x stage", "items")
    table.add_row(f"evaluations ({kinds}), the common start aside", f"{stages * len(cells):,} with {answers:,} {what}")
    return table


def _print_items(console: SafeConsole, suite: Suite, task: Task) -> None:
    """Try one item of a task; print how many items it has, how many are independent, and warnings about them."""
    tried = try_task(task, Renderer(byte_tokenizer(), Chat(template="chatml")))
    facts = describe_items(task, suite.evaluation.limit)
    console.say(f"{task.name}: {facts}")
    worth = {split: grades.reference for split, grades in tried.items() if grades.reference != 1}
    graded = [f"the {split} reference is graded {score:g}, expected 1" for split, score in worth.items()]
    for warning in [*graded, *item_warnings(task, suite.evaluation.limit)]:
        console.print(f"[yellow]warning:[/] {task.name}: {escape(warning)}", highlight=False, soft_wrap=True)


def _print_overlap(console: SafeConsole, overlap: Overlap) -> None:
    if overlap.found:
        table = Table(*OVERLAP_HEADER, title="training prompts in test sets")
        for row in overlap.found:
            table.add_row(*row.cells)
        console.print(table)
    warned = "[yellow]warning:[/] " if overlap.warning else ""
    console.print(f"{warned}{escape(overlap.summary)}", highlight=False, soft_wrap=True)


def _print_cut_references(
    console: SafeConsole, spec: RunSpec, tasks: dict[str, Task], prompting: tuple[Renderer, int] | str
) -> None:
    """Warn of references that are cut, by the first items of each task; the run looks at all."""
    if isinstance(prompting, str):
        return
    for sentence in cut_references(spec, stages_on_data(spec), tasks, prompting[0], SAMPLED_REFERENCES):
        console.print(f"[yellow]warning:[/] {spec.entry}: {escape(sentence)}", highlight=False, soft_wrap=True)


def _test_items(suite: Suite, task: Task) -> int:
    return len(task.test_docs(suite.evaluation.limit))


def _prompts_of(spec: RunSpec) -> tuple[Any, ...]:
    """Return what decides a run's prompts and their budgets; entries with equal values are checked once."""
    return tuple((stage.trains, stage.training.train_items, stage.training.max_new_tokens) for stage in spec.stages)


def _fits(spec: RunSpec, evaluated: EvaluationPlan, prompting: tuple[Renderer, int] | str) -> str:
    if isinstance(prompting, str):
        return f"not checked, because the student's tokenizer is not on this machine ({prompting})"
    renderer, context = prompting

    def longest(task: Task, limit: int | None, room: int) -> int:
        return renderer.longest_prompt(task.training_prompts(renderer, limit), room)

    beyond, limit = spec.suite.engine.beyond_context, spec.suite.evaluation.limit
    check_test_prompts(evaluated.cells.values(), renderer, context, beyond, limit)
    check_training_prompts(spec, evaluated.tasks, context, longest)
    return f"all fit the context of {context} tokens"
