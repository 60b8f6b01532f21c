"""Every number of a report's page is what plain pandas makes of the run directories."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import reports.report.sections
from benchmarks.report_runs import STAGES, Scale, write_runs
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from reports.claims.verdict_views import RULE
from reports.document.sentences import format_nats, format_nats_change, format_percent, format_points
from reports.report.build import build_report
from tests.reports.by_hand import Runs, read_runs
from tests.reports.by_hand_sentences import sentences
from tests.reports.by_hand_training import recompute
from tests.support.models import micro_suite, write_yaml
from tests.support.parsed_page import ParsedPage, parse
from tests.support.run_factory import TAUGHT, write_run

LOGGED = TAUGHT | {"advantage_q01": -4.0, "advantage_q25": -0.3, "advantage_q75": 0.1, "advantage_q99": 0.8}
TABLES = "The same as tables, with 95 % t intervals over seeds"
TEXT_COLUMNS = {"formula", "source"}
# What an answer that stands on the page as an example is called: it quotes the item's run and stages.
QUOTED = re.compile(r"(Lost|Gained) .+: .+, seed \d+|After stage \d+: \w+|At the start: \w+")
NAMED = re.compile(r"Suite, configuration [0-9a-f]{16}|Adapter .+|.+, claimed in https://\S+\.")


def matched(root: Path) -> Path:
    """Three seeds of two methods that learn alike and forget unlike, a third with two seeds and warnings, and a control."""
    start = [2 / 13, 1 / 13, 9 / 13]
    learned = {"opd": [10, 9, 10], "aopd": [10, 9, 10], "gkd": [6, 8]}
    kept = {"opd": [3, 2, 4], "aopd": [8, 7, 7], "gkd": [5, 4]}
    for adapter, firsts in learned.items():
        for seed, (one, end) in enumerate(zip(firsts, kept[adapter], strict=True)):
            scores = [start, [one / 13, 3 / 13, 8 / 13], [end / 13, (11 - seed) / 13, (7 + seed) / 13]]
            logged = LOGGED | {"entropy": 0.5 + 0.1 * seed + 0.3 * (adapter == "aopd"), "pull_up": 0.02 + 0.003 * seed}
            logged |= {"warnings": ["truncation"]} if (adapter, seed) == ("gkd", 1) else {}
            write_run(root, adapter, seed, scores, items=13, logged=logged)
    return write_run(root, "none", 0, [start] * 3, items=13).parents[3]


def unfinished(root: Path) -> Path:
    """One seed each, learning unmatched; a third run that lacks its last evaluation; training prompts in a test set."""
    write_run(root, "opd", items=13, scores=[[2 / 13, 1 / 13, 1], [8 / 13, 3 / 13, 1], [5 / 13, 9 / 13, 1]])
    write_run(
        root, "gkd", items=13, scores=[[2 / 13, 1 / 13, 1], [7 / 13, 3 / 13, 1], [5 / 13, 9 / 13, 0]], evaluated=8
    )
    run = write_run(
        root, "aopd", items=13, scores=[[2 / 13, 1 / 13, 1], [11 / 13, 3 / 13, 1], [3 / 13, 10 / 13, 5 / 13]]
    )
    row = {
        "source": "stage 1", "trained_task": "tiny_arithmetic", "test_task": "tiny_weather", "training_items": 4000,
        "test_items": 13, "exact": 2, "ngram_items": 3, "ngram_share_mean": 0.4567, "too_short": 5,
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "overlap": {"rows": [row], "digests": {}}}))
    return root


def joint(root: Path) -> Path:
    """Two methods beside the same over all tasks at once, two seeds each."""
    for place, adapter in enumerate(("opd", "aopd")):
        for seed in (0, 1):
            stages = [[2 / 13, 0, 1], [(8 + place + seed) / 13, 0, 1], [(4 + 2 * place) / 13, 8 / 13, 1]]
            write_run(root, adapter, seed, stages, items=13)
            ends = [[2 / 13, 0, 1], [(11 + place) / 13, (11 - seed) / 13, 1]]
            write_run(root, adapter, seed, ends, order="joint", joint=True, items=13)
    return root


def drifting(root: Path) -> Path:
    """Five methods with the distance to the start: each stands beside one reference alone."""
    return write_runs(root, Scale(seeds=2, stages=STAGES[:2], items=29, steps=7, prompt=5, response=5, drift_items=3))


@pytest.fixture(scope="module", params=[matched, unfinished, joint, drifting], ids=lambda make: make.__name__)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParsedPage]:
    """Run directories and the page made of them."""
    make: Callable[[Path], Path] = request.param
    root = make(tmp_path_factory.mktemp(make.__name__))
    return root, parse(build_report([root], root.parent / f"{make.__name__}-report"))


def test_every_table_is_recomputed_cell_by_cell(built: tuple[Path, ParsedPage]):
    check_tables(*built)


def test_every_sentence_with_a_number_is_recomputed(built: tuple[Path, ParsedPage]):
    check_sentences(*built)


def check_tables(root: Path, page: ParsedPage) -> None:
    """Compare all tables; one that nothing recomputes fails."""
    runs: dict[str, Runs] = {}
    assert page.tables
    for table in page.tables:
        profile = table.heading.removeprefix("Evaluation profile ") if table.heading.startswith("Evaluation ") else ""
        runs[profile] = runs.get(profile) or read_runs(root, profile)
        found = recompute(runs[profile], table.caption)
        assert found is not None, f"nothing recomputes the table {table.caption!r}"
        kept = [i for i, name in enumerate(table.header) if name not in TEXT_COLUMNS]
        shown = [[row[i] for i in kept] for row in table.rows]
        assert ([table.header[i] for i in kept], shown) == found, table.caption


def check_sentences(root: Path, page: ParsedPage) -> None:
    """Compare all sentences that hold a digit and are no explanation, both ways."""
    told = {text for _, text in page.sentences if re.search(r"\d", text) and text not in explanations()}
    told = {text for text in told if not QUOTED.fullmatch(text) and not NAMED.fullmatch(text)}
    assert told == {text for text in sentences(read_runs(root)) if re.search(r"\d", text)}


def explanations() -> set[str]:
    """The sections' fixed texts: what is the same whatever the runs."""
    modules = [
        import_module(f"reports.report.sections.{found.name}")
        for found in iter_modules(reports.report.sections.__path__)
    ]
    return {RULE, TABLES, *(value for module in modules for value in vars(module).values() if isinstance(value, str))}


@pytest.mark.parametrize("write", [format_percent, format_points, format_nats, format_nats_change])
def test_what_rounds_to_zero_has_no_minus_sign(write: Callable[[float], str]):
    assert write(-1e-9) == write(0.0)
    assert "−" in write(-0.01)


@pytest.mark.slow
def test_a_real_runs_report_is_recomputed(tmp_path: Path):
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", learning_suite())))
    for adapter, seed in product(("opd", "aopd"), (0, 1)):
        run(RunSpec(suite, adapter, seed, out=tmp_path / "runs"))
    page = parse(build_report([tmp_path / "runs"], tmp_path / "report"))
    captions = {table.caption for table in page.tables}
    assert captions >= {"Several answers of each item", "Cost", "Claims"}
    check_tables(tmp_path / "runs", page)
    check_sentences(tmp_path / "runs", page)


def learning_suite() -> dict[str, Any]:
    """The micro suite, larger and longer warmed up, so that some answers are right: two profiles, one of four answers."""
    suite = micro_suite()
    for side, strength, steps in (("student", "weak", 300), ("teacher", "good", 500)):
        warmup = suite[side]["warmup"] | {"strengths": {strength: {"steps": steps}}, "lr": 5e-3}
        architecture = suite[side]["architecture"] | {"hidden_size": 64, "intermediate_size": 128}
        suite[side] |= {"warmup": warmup, "architecture": architecture}
    suite["training"] |= {"steps": 6, "prompts_per_step": 16, "max_new_tokens": 40, "optimizer": {"lr": 2e-3}}
    greedy = {"temperature": 0, "max_gen_toks": 40}
    sampled = {"n": 4, "temperature": 0.8, "max_gen_toks": 40, "pass_at": [1, 4]}
    profiles = {"greedy": greedy, "sampled": sampled}
    return suite | {"evaluation": {"limit": 7, "batch_size": 32, "drift": {"items": 4}, "profiles": profiles}}
