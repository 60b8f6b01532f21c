"""The sections of a study's page: findings, learning against forgetting, retention, training, and one factor at a time.

Only the study's YAML decides what is compared: its claims files, `against`, and its factors.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.stats.learning.matching import MARGIN
from harness.stats.looks import ALPHA, FEWEST_SEEDS
from reports.claims.judge_claims import Verdict
from reports.claims.registration import describe_source
from reports.claims.render_verdicts import RULE, verdicts_grid
from reports.document.blocks import Block, Bullets, Grid, Section, Text
from reports.document.grids import hardware_grid, packages_grid
from reports.document.sentences import count_warnings, describe_overlap, describe_warning
from reports.formatting import (
    format_interval,
    format_nats,
    format_nats_change,
    format_percent,
    format_pull,
    format_pull_change,
)
from reports.report.sections.pulls_section import PULLS
from reports.study.contrasts import describe_by_start, describe_contrasts, find_contrasts
from reports.study.equal_learning_blocks import equal_learning_blocks
from reports.study.factors import factor_blocks
from reports.study.matched_settings import (
    FORGETTING,
    RETENTION,
    describe_matching,
    pairs_grid,
    varies_rates,
)
from reports.study.page_sentences import describe_making
from reports.study.profile_blocks import describe_ends_below, profile_blocks
from reports.study.study_frontier import frontier_blocks
from reports.study.study_plan import Config
from reports.study.study_results import Results
from reports.study.study_verdicts import claim_files
from reports.study.training_pictures import training_pictures

CONFIG = list(Config._fields)
BY_CHANCE = (
    "Differences are in points. They are stated where the 95 % interval over at least {seeds} paired seeds excludes zero; of "
    "{count} in learning and forgetting, about {chance:.1f} do so by chance. Learning is matched where the whole interval of "
    "its difference lies within ±{margin:g} points. Elsewhere forgetting is not judged, because a method that learned less "
    "had less to forget. These differences are at one learning rate per method; another rate may "
    "reverse their order."
)
MATCHED_NOTE = (
    "A method that learns less has less to forget, so retention of the first task is compared only where that task was "
    "learned equally, and forgetting only where all tasks were. Matched: the whole 95 % interval of the paired "
    "difference in learning lies within ±{margin:g} points. Pairs that are matched on average only, or unmatched, are "
    "listed and not judged. Each setting of a method is paired with the setting of its reference that has the same start "
    "and seeds and is closest in learning, chosen on these seeds; one setting of the reference may serve several. "
    "Differences are in points."
)
MEANING = (
    "Learning: mean score of a task right after its own stage. ACC: mean final score. Forgetting: mean drop of earlier "
    "tasks from their best since the first stage (Chaudhry), or since the start. BWT: mean change since their own "
    "stage. Intransigence: how much lower learning is than after one joint stage over all tasks. Entropy: mean over training "
    "steps, nats per answer token. Routed: tokens that took forward KL. Truncated: training answers cut off at the "
    "length limit. Brackets are 95 % t intervals over seeds; one seed has none."
)
PULL_COLUMNS = {
    "pull_up": ("pull up", format_pull),
    "pull_down": ("pull down", format_pull),
    "pull_ratio": ("down / up", format_pull),
    "entropy": ("entropy, nats", format_nats),
    "routed_share": ("routed %", format_percent),
    "fkl_gradient_share": ("forward KL's share of the gradient %", format_percent),
}


def study_sections(results: Results, verdicts: list[Verdict]) -> list[Section]:
    """Return the sections that the study has data for."""
    found = [
        _findings(results, verdicts),
        _section("frontier", "Learning and forgetting", "Learning against forgetting", frontier_blocks(results)),
        _section("curves", "At equal learning", "What is kept at equal learning", equal_learning_blocks(results)),
        _section("profiles", "Profiles", "What holds under other ways of answering", profile_blocks(results)),
        _section("matched", "Matched learning", "What is kept at matched learning", list(_matched(results))),
        _training(results),
        _pulls(results),
        _warnings(results),
        _factors(results),
        _provenance(results),
    ]
    return [section for section in found if section is not None]


def _section(name: str, short: str, title: str, blocks: list[Block]) -> Section | None:
    return Section(name, short, title, blocks) if blocks else None


def _findings(results: Results, verdicts: list[Verdict]) -> Section:
    blocks: list[Block] = []
    if verdicts:
        files = claim_files(results)
        blocks += [Text(describe_source(file, results.frames.runs, results.plan.study.planned_looks)) for file in files]
        blocks += [verdicts_grid(verdicts), Text(RULE, "note")]
    factors = [factor for factor in results.plan.study.factors.values() if factor.of_entries]
    found = {factor.title: contrasts for factor in factors if (contrasts := find_contrasts(results, factor))}
    if found:
        count = 2 * sum(map(len, found.values()))
        chance = BY_CHANCE.format(seeds=FEWEST_SEEDS, count=count, chance=count * ALPHA, margin=100 * MARGIN)
        blocks += [
            Bullets(
                [f"{title}{_at_own_settings(results)}: {describe_contrasts(each)}" for title, each in found.items()]
            )
        ]
        blocks += [Text(chance, "note")]
    if not blocks:
        blocks = [Text(f"Nothing is judged: no method and its reference have {FEWEST_SEEDS} seeds in common.")]
    if below := describe_ends_below(results):
        blocks += [Bullets(below)]
    return Section("findings", "Findings", "What shows and what does not", blocks)


def _at_own_settings(results: Results) -> str:
    """Name the suite's own start, where there are several, and its first profile, for a table or sentence of these."""
    start = f", {results.layout.starts[0]} start" if len(results.layout.starts) > 1 else ""
    return f"{start}{f', {results.profile} decoding' if results.profile else ''}"


def _matched(results: Results) -> Iterator[Block]:
    pairs = [methods for methods in results.plan.study.contrasts if varies_rates(results, methods)]
    if pairs:
        yield Text(MATCHED_NOTE.format(margin=100 * MARGIN), "note")
    for methods in pairs:
        for matching in (RETENTION, FORGETTING):
            yield pairs_grid(results, matching, methods)
            yield Bullets(describe_matching(results, matching, methods))


def _training(results: Results) -> Section | None:
    """Return entropy, routing and truncation of the study's methods at the suite's own setting, from each start."""
    entries = results.plan.study.entries
    labels = {results.layout.own(start, entry): entry for start in results.layout.starts for entry in entries}
    if results.steps_of(list(labels)).empty:
        return None
    readings = describe_by_start(results, "entropy_last", "Entropy over the last stage", format_nats_change, " nats")
    blocks: list[Block] = [
        *training_pictures(results, "training", labels),
        *(Text(each, "measured") for each in readings),
    ]
    return Section("training", "Training", "Entropy, routing and truncation in training", blocks)


def _pulls(results: Results) -> Section | None:
    grid = pulls_grid(results)
    if not grid.rows:
        return None
    readings = describe_by_start(results, "pull_ratio", "Down / up", format_pull_change)
    blocks: list[Block] = [Text(PULLS, "note"), grid, *(Text(each, "measured") for each in readings)]
    return Section("pulls", "Pulls", "Pulls on the teacher's first choice", blocks)


def pulls_grid(results: Results) -> Grid:
    """Return the mean pulls, their ratio, entropy and routing; no rows where no run recorded pulls."""
    rows = []
    for config, setting in results.configs.items():
        means = [results.mean(config, figure) for figure in PULL_COLUMNS]
        if means[0].seeds:
            cells = [
                format_interval(mean, write) for mean, (_, write) in zip(means, PULL_COLUMNS.values(), strict=True)
            ]
            rows.append([config.adapter, setting, str(means[0].seeds), *cells])
    return _without_empty_settings("Pulls", ["seeds", *(called for called, _ in PULL_COLUMNS.values())], rows)


def _warnings(results: Results) -> Section:
    grid = study_warnings_grid(results)
    blocks: list[Block] = [Text(count_warnings(results.frames))]
    if grid.rows:
        note = Text("Each is raised at most once in a stage; the table counts the stages that raised it.", "note")
        blocks += [note, grid, Bullets([describe_warning(kind) for kind in _kinds(results)])]
    return Section("warnings", "Warnings", "Warnings in training", blocks)


def study_warnings_grid(results: Results) -> Grid:
    """Return for each configuration with warnings the number of its stages that raised each kind."""
    raised, kinds = results.frames.warnings, _kinds(results)
    stages = results.frames.steps.drop_duplicates([*CONFIG, "seed", "stage"]).groupby(CONFIG).size()
    counts = raised.drop_duplicates([*CONFIG, "seed", "stage", "warning"]).groupby([*CONFIG, "warning"]).size()
    rows = []
    for config, setting in results.configs.items():
        found = [int(counts.get((*config, kind), 0)) for kind in kinds]
        if any(found):
            rows.append([config.adapter, setting, str(stages[tuple(config)]), *(str(count or "–") for count in found)])
    return _without_empty_settings("Warnings in training", ["stages trained", *kinds], rows)


def _kinds(results: Results) -> list[str]:
    return sorted(set(results.frames.warnings["warning"]))


def _factors(results: Results) -> Section:
    silent = ", ".join(results.off_policy)
    why = f"No entropy or truncation is given for {silent}, which train on references, not on the student's own answers alone."
    blocks: list[Block] = [Text(MEANING, "note"), *([Text(why, "note")] if silent else [])]
    present = set(results.points["factor"])
    for name in results.plan.study.factors:
        blocks += factor_blocks(results, name) if name in present else []
    return Section("factors", "Factors", "One factor at a time", blocks)


def _provenance(results: Results) -> Section:
    frames = results.frames
    grids = [packages_grid(frames), hardware_grid(frames)]
    blocks: list[Block] = [Bullets(describe_making(results)), Text(" ".join(describe_overlap(frames)), "note"), *grids]
    return Section("provenance", "How this was made", "How this was made", blocks)


def _without_empty_settings(title: str, header: list[str], rows: list[list[str]]) -> Grid:
    """Return rows of method, setting and more as a grid, without the setting's column where all settings are empty."""
    if any(row[1] for row in rows):
        return Grid(title, ["method", "setting", *header], [[row[0], row[1] or "own", *row[2:]] for row in rows])
    return Grid(title, ["method", *header], [[row[0], *row[2:]] for row in rows])
