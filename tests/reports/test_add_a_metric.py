"""The page docs/add-a-metric.md is enough: its entry is a figure of values, reports, CSV files, comparisons and claims."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import ConfigError
from harness.stats import continual
from harness.stats.continual import FIGURES, compute_figures, register_figure
from harness.stats.score_matrix import Figure, ScoreMatrix
from reports.claims.claim_file import read_claims
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import judge_claims
from reports.compare.comparison import Comparison
from reports.data.methods import find_methods
from reports.report.build import build_report
from tests.support.reports.claim_factory import write_claims
from tests.support.reports.run_factory import write_run

PAGE = Path(__file__).parents[2] / "docs" / "add-a-metric.md"
ENTRY, GOLDEN = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
# The matrix of tests/stats/test_continual.py.
ROWS = [[0.50, 0.10, 0.20, 0.60], [0.40, 0.30, 0.10, 0.50], [0.45, 0.90, 0.00, 0.70], [0.20, 0.60, 0.80, 0.30]]
START = [0.5, 0.1, 0.6]
LITTLE = [START, [0.6, 0.2, 0.5], [0.4, 0.6, 0.5]]  # gains (-0.1 + 0.5) / 2 = 0.2
MUCH = [START, [0.8, 0.2, 0.5], [0.7, 0.9, 0.4]]  # gains (0.2 + 0.8) / 2 = 0.5


@pytest.fixture
def added() -> Generator[Figure]:
    """The page's figure, registered as it stands there."""
    exec(compile(ENTRY, str(PAGE), "exec"), {**vars(continual)})
    (name,) = set(FIGURES) - BEFORE
    yield FIGURES[name]
    del FIGURES[name]


BEFORE = set(FIGURES)


def test_the_value_by_hand_on_the_page_is_the_figures(added: Figure):
    expected: dict[str, float] = eval(f"{{{GOLDEN}}}")
    matrix = ScoreMatrix(np.array(ROWS), ("a", "b", "c"), ("p",))
    assert {added.name: compute_figures(matrix)[added.name]} == pytest.approx(expected)


@pytest.mark.usefixtures("blank_figures")
def test_a_report_shows_it_with_its_formula_and_writes_it_as_csv(added: Figure, tmp_path: Path):
    write_run(tmp_path, "opd", scores=MUCH)
    page = build_report([tmp_path], tmp_path / "report")
    (line,) = [
        row for row in page.with_suffix(".md").read_text("utf-8").splitlines() if row.startswith(f"| {added.label} ")
    ]
    assert added.formula in line
    assert "+50.0" in line
    (path,) = page.parent.rglob("figures.csv")
    with path.open(encoding="utf-8") as file:
        (row,) = [row for row in csv.DictReader(file) if row["figure"] == added.name]
    assert float(row["mean"]) == pytest.approx(0.5)


def test_a_comparison_and_a_claim_use_it(added: Figure, tmp_path: Path):
    for seed, move in enumerate((0.0, 0.1, -0.1)):
        write_run(tmp_path, "opd", seed, LITTLE)
        write_run(tmp_path, "aopd", seed, [*MUCH[:2], [MUCH[2][0] + move, *MUCH[2][1:]]])
    methods = find_methods([tmp_path / "tiny" / "opd", tmp_path / "tiny" / "aopd"])
    row = Comparison(methods).row("aopd", added)
    assert row is not None
    assert row.title == added.short
    # 0.3 for seed 0; the first task's end moves by 0.1, which is half as much of the mean over two tasks
    assert list(row.difference.by_seed.values()) == pytest.approx([0.3, 0.35, 0.25])
    expression = f"metric(aopd, {added.name}) > metric(opd, {added.name})"
    file = read_claims(str(write_claims(tmp_path, {"expression": expression, "scope": {}})))
    (verdict,) = judge_claims([file], Evidence(methods))
    assert verdict.effect.mean == pytest.approx(row.difference.interval.mean)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "total gain"}, "expected letters, digits and _"),
        ({"unit": "percent"}, "unit is 'percent', expected one of '%'"),
        ({"compared": "all"}, "compared is 'all', expected one of ''"),
        ({"short": ""}, "short is empty"),
        ({"of_task": "learned"}, "of_task 'learned' is taken"),
    ],
)
def test_an_entry_that_no_reader_could_show_is_refused(changes: dict[str, Any], sentence: str, added: Figure):
    with pytest.raises(ConfigError, match="total") as error:
        register_figure(replace(added, **{"name": "total_again", **changes}))
    assert sentence in str(error.value)
