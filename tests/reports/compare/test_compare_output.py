"""What `harness compare` prints and writes: Markdown, LaTeX and CSV that hold hostile names, its files and mistakes."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cli.app import main
from reports.compare.comparison import Comparison
from reports.compare.render_comparison import to_latex, to_markdown
from reports.data.csv_text import to_csv_text
from reports.data.methods import find_methods
from reports.document.text_tables import latex_table, markdown_table
from tests.support.reports.compared_runs import HIGH, LOW, write_three


def test_latex_is_booktabs_without_a_character_that_pdflatex_lacks(two: list[Path]):
    text = to_latex(Comparison(find_methods(two)))
    assert r"\toprule" in text
    assert r"learned: tiny\_arithmetic & 60.0 & 80.0 & +20.0" in text
    assert text.isascii()


def test_latex_fits_a_page_with_label_and_note_and_runs_no_command_of_a_name(two: list[Path]):
    text = to_latex(Comparison(find_methods(two)))
    assert r"\label{tab:aopd-minus-opd}" in text
    assert text.count(r"\footnotesize") == 1
    assert max(row.count("&") for row in text.splitlines()) <= 5
    table = pd.DataFrame({"": [r"\input{/etc/passwd}"], "a_b": ["50 % & more"]})
    hostile = latex_table(table, r"x|\input{/etc/passwd}|")
    assert r"\input" not in hostile
    assert r"\textbackslash{}input\{/etc/passwd\}" in hostile


def rows_and_note(text: str) -> tuple[list[list[str]], str]:
    """Return the cells of a LaTeX table's rows, and the note below it."""
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.count("&") == 5]
    (note,) = re.findall(r"\\footnotesize (.*)\\par\}", text)
    return rows, note


def test_latex_has_the_seeds_and_notes_and_says_over_what_its_brackets_are(tmp_path: Path):
    paths = [write_three(tmp_path, "opd", LOW), write_three(tmp_path, "aopd", HIGH, (0.0, 0.0))]
    rows, note = rows_and_note(to_latex(Comparison(find_methods(paths))))
    assert [row[5] for row in rows[:2]] == [r"seeds $\times$ items", r"2 $\times$ 10"]
    assert "paired difference" in note
    assert "opd: seed 2 has no partner" in note
    apart = write_three(tmp_path, "gkd", HIGH, weights="apart")
    rows, note = rows_and_note(to_latex(Comparison(find_methods([paths[0], apart]))))
    assert "Welch" in note
    assert "paired difference" not in note
    assert "start from different weights" in note
    single = [path / "default/seed0" for path in paths]
    rows, note = rows_and_note(to_latex(Comparison(find_methods(single))))
    assert "over seeds" not in note
    assert "one seed" in note
    # one of 10 items is lost: t(0.975, 9) * sqrt(0.1 / 10) = 22.6 points
    assert rows[1][3] == "$-$10.0 [$-$32.6,~+12.6]"


def test_markdown_of_a_hostile_name_stays_one_cell_and_text():
    table = markdown_table(pd.DataFrame({"": ["a|b<script>"], "c|d": ["1"]}))
    assert "<script" not in table
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {3}


def test_a_csv_holds_no_formula():
    text = to_csv_text(pd.DataFrame({"name": ["=1+1", "-x", "ok"], "value": [-1.0, 2.0, 3.0]}))
    assert text.splitlines() == ["name,value", "'=1+1,-1.0", "'-x,2.0", "ok,3.0"]
    assert to_csv_text(pd.DataFrame({"=HYPERLINK(1)": [1]})).splitlines()[0] == "'=HYPERLINK(1)"


def test_markdown_has_one_line_per_row(two: list[Path]):
    compared = Comparison(find_methods(two))
    lines = to_markdown(compared, ["A sentence."]).splitlines()
    assert lines[0] == "A sentence."
    assert sum(line.startswith("| ") for line in lines) == len(compared.rows) + 1


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["harness", "compare", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_its_files(two: list[Path], tmp_path: Path, monkeypatch: Any, capsys: Any):
    out = tmp_path / "out"
    code, shown, _ = call(monkeypatch, capsys, *map(str, two), "--out", str(out), "--claims", "aopd")
    assert code == 0
    assert "aopd learned 20.0 points more" in " ".join(shown.split())
    names = {"compare.md", "compare.tex", "compare.csv", "compare_by_seed.csv", "claims.md", "claims.csv"}
    assert {file.name for file in out.iterdir()} == names
    assert set(pd.read_csv(out / "claims.csv")["verdict"]) == {"not testable", "exploratory"}


def test_csv_on_standard_output_is_nothing_but_csv(two: list[Path], tmp_path: Path, monkeypatch: Any, capsys: Any):
    code, shown, err = call(monkeypatch, capsys, *map(str, two), "--format", "csv", "--out", str(tmp_path / "o"))
    rows = list(csv.DictReader(io.StringIO(shown.strip())))
    assert code == 0
    assert {row["method"] for row in rows} == {"aopd"}
    assert "written:" in err


@pytest.mark.parametrize(
    ("kind", "opening"), [("csv", "claim,primary,profile,"), ("markdown", "# Claims"), ("latex", r"\caption{Claims}")]
)
def test_verdicts_are_printed_in_the_format_that_is_asked_for(
    kind: str, opening: str, two: list[Path], monkeypatch: Any, capsys: Any
):
    code, shown, _ = call(monkeypatch, capsys, *map(str, two), "--format", kind, "--claims", "aopd")
    assert code == 0
    assert opening in shown
    assert "not testable" in shown[shown.index(opening) :]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "html"], "--format html: .*markdown, csv, latex"),
        (["--stage", "0,1,2"], "--stage 0,1,2: .*one stage, or two"),
        (["--stage", "one"], "--stage one: .*whole numbers"),
        (["--stage", "0,1", "--claims", "aopd"], "--claims .*--stage"),
        (["--stage", "1", "--claims", "aopd"], "--claims .*--stage"),
        (["--claims", "nowhere.yaml"], r"claims file nowhere\.yaml"),
    ],
)
def test_mistakes_are_one_line(two: list[Path], arguments: list[str], sentence: str, monkeypatch: Any, capsys: Any):
    code, _, err = call(monkeypatch, capsys, *map(str, two), *arguments)
    assert code == 2
    assert re.search(sentence, err)
    assert len(err.strip().splitlines()) == 1
