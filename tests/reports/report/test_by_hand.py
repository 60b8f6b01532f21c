"""Every number of a report's page is the one that plain pandas computes from the run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from benchmarks.report_runs import STAGES, Scale, write_runs
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from reports.formatting import format_nats, format_nats_change, format_percent, format_points
from reports.report.build import build_report
from tests.reports.report.by_hand import Runs, read_runs
from tests.reports.report.by_hand_pairs import headline_numbers
from tests.reports.report.by_hand_training import recompute
from tests.support.models import learning_suite, write_yaml
from tests.support.reports.drawn_figures import blank_figures
from tests.support.reports.parsed_page import ParsedPage, parse
from tests.support.reports.run_factory import TAUGHT, write_run

LOGGED = TAUGHT | {"advantage_q01": -4.0, "advantage_q25": -0.3, "advantage_q75": 0.1, "advantage_q99": 0.8}
TEXT_COLUMNS = {"formula", "source"}
ALWAYS = {"Methods at a glance, mean with 95 % interval over seeds", "Outcomes", "Cost", "Figures", "Runs", "Weights"}


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
    """Two methods, and the same two trained on all tasks at once, two seeds each."""
    for place, adapter in enumerate(("opd", "aopd")):
        for seed in (0, 1):
            stages = [[2 / 13, 0, 1], [(8 + place + seed) / 13, 0, 1], [(4 + 2 * place) / 13, 8 / 13, 1]]
            write_run(root, adapter, seed, stages, items=13)
            ends = [[2 / 13, 0, 1], [(11 + place) / 13, (11 - seed) / 13, 1]]
            write_run(root, adapter, seed, ends, order="joint", joint=True, items=13)
    return root


def drifting(root: Path) -> Path:
    """Five methods with the distance to the start: each is compared with only one reference."""
    return write_runs(root, Scale(seeds=2, stages=STAGES[:2], items=29, steps=7, prompt=5, response=5, drift_items=3))


@pytest.fixture(scope="module", params=[matched, unfinished, joint, drifting], ids=lambda make: make.__name__)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParsedPage]:
    """Run directories and the page made of them."""
    make: Callable[[Path], Path] = request.param
    root = make(tmp_path_factory.mktemp(make.__name__))
    with blank_figures():
        return root, parse(build_report([root], root.parent / f"{make.__name__}-report"))


def test_tables_are_recomputed_cell_by_cell(built: tuple[Path, ParsedPage]):
    check_tables(*built)


def test_the_headlines_numbers_are_recomputed(built: tuple[Path, ParsedPage]):
    check_headline(*built)


def check_tables(root: Path, page: ParsedPage) -> None:
    """Compare every table that `RECOMPUTED` knows; a report has at least those of `ALWAYS`."""
    runs: dict[str, Runs] = {}
    checked: set[str] = set()
    for table in page.tables:
        profile = table.heading.removeprefix("Evaluation profile ") if table.heading.startswith("Evaluation ") else ""
        runs[profile] = runs.get(profile) or read_runs(root, profile)
        if expected := recompute(runs[profile], table.caption):
            kept = [i for i, name in enumerate(table.header) if name not in TEXT_COLUMNS]
            shown = [[row[i] for i in kept] for row in table.rows]
            assert ([table.header[i] for i in kept], shown) == expected, table.caption
            checked.add(table.caption)
    assert checked >= ALWAYS


def check_headline(root: Path, page: ParsedPage) -> None:
    """Look up the paired differences in the sentence that names both methods."""
    sentences = [text for _, text in page.sentences]
    for base, other, numbers in headline_numbers(read_runs(root)):
        naming = [text for text in sentences if base in text and other in text]
        assert any(all(number in text for number in numbers) for text in naming), (base, other, numbers)


@pytest.mark.parametrize("write", [format_percent, format_points, format_nats, format_nats_change])
def test_what_rounds_to_zero_has_no_minus_sign(write: Callable[[float], str]):
    assert write(-1e-9) == write(0.0)
    assert "−" in write(-0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_real_runs_report_is_recomputed(tmp_path: Path):
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", learning_suite())))
    for adapter, seed in product(("opd", "aopd"), (0, 1)):
        run(RunSpec(suite, adapter, seed, out=tmp_path / "runs"))
    page = parse(build_report([tmp_path / "runs"], tmp_path / "report"))
    captions = {table.caption for table in page.tables}
    assert captions >= {"Several answers of each item", "Cost", "Claims"}
    check_tables(tmp_path / "runs", page)
    check_headline(tmp_path / "runs", page)
