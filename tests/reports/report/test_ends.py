"""A report opens with where the methods end, against each other and the start, and says where nothing was learned."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.rundir.files import write_cell
from reports.data.frames import load_frames
from reports.report.build import build_report
from reports.report.ends import describe_ends, start_scores
from reports.report.teacher_scores import name_worse, teacher_means
from tests.support.reports.records import cell_of
from tests.support.reports.run_factory import write_run

START = [0.5, 0.1, 0.6]


def test_the_ends_stand_next_to_the_start(tmp_path: Path):
    for seed, (opd, aopd) in enumerate([(0.2, 0.4), (0.4, 0.8)]):
        write_run(tmp_path, "opd", seed, [START, [0.8, 0.2, 0.5], [opd, 0.6, 0.5]])
        write_run(tmp_path, "aopd", seed, [START, [0.8, 0.2, 0.5], [aopd, 0.6, 0.5]])
    (sentence,) = (each.replace("\u00a0", " ") for each in describe_ends(load_frames([tmp_path])))
    # opd ends at 0.4 and 0.5, aopd at 0.5 and 0.7: half-widths 12.706 * 0.05 and 12.706 * 0.1, cut at 0 and 1
    assert "opd 45.0 [0.0, 100.0] %, aopd 60.0 [0.0, 100.0] %; " in sentence
    assert "start had 30.0 [30.0, 30.0] %" in sentence


def test_the_start_next_to_the_ends_is_that_of_the_runs_that_have_ended(tmp_path: Path):
    """The second seed began at 65 % and has no end; the third one's start lacks a task, so it is no mean of its tasks yet."""
    write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.2, 0.6, 0.5]])
    write_run(tmp_path, "opd", 1, [[0.7, 0.6, 0.6], *[START] * 2], evaluated=6)
    write_run(tmp_path, "opd", 2, [START] * 3, evaluated=1)
    frames = load_frames([tmp_path])
    assert "opd 40.0 %; the start had 30.0 %." in describe_ends(frames)[0].replace("\u00a0", " ")
    assert (start_scores(frames)["start"].mean, start_scores(frames)["start"].seeds) == (pytest.approx(0.475), 2)


@pytest.mark.usefixtures("blank_figures")
def test_a_control_ends_where_it_started_and_the_start_is_a_row_of_the_first_table(tmp_path: Path):
    write_run(tmp_path, "none", 0, [START, START, START])
    write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.2, 0.6, 0.5]])
    frames = load_frames([tmp_path])
    assert start_scores(frames)["start"].mean == 0.3
    assert describe_ends(frames)[0].replace("\u00a0", " ").endswith("opd 40.0 %; the start had 30.0 %; none 30.0 %.")
    page = build_report([tmp_path], tmp_path / "report").with_suffix(".md").read_text(encoding="utf-8")
    assert "| start | 1 | – | 30.0 | – |" in page


@pytest.mark.usefixtures("blank_figures")
def test_the_teacher_is_a_row_of_the_first_table_and_named_where_it_is_worse_than_the_start(tmp_path: Path):
    run = write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.2, 0.6, 0.5]])
    for task, score in {"tiny_arithmetic": 0.9, "tiny_weather": 0.0, "tiny_long_sums": 0.7}.items():
        samples = pd.DataFrame({"item_id": ["0"], "response": ["2"], "outcome": ["correct"]})
        write_cell(run / "teacher" / "eval" / task, cell_of(score, task=task, weights="digest-teacher"), samples)
    frames = load_frames([tmp_path])
    assert teacher_means(frames)["teacher"].mean == 0.45
    assert "the teacher has 45.0 %" in describe_ends(frames)[0]
    (worse,) = name_worse(frames)
    assert "tiny_weather (teacher 0.0 %, start 10.0 %)" in worse
    assert "tiny_arithmetic" not in worse
    page = build_report([tmp_path], tmp_path / "report").with_suffix(".md").read_text(encoding="utf-8")
    assert "| teacher | – | – | 45.0 | – |" in page
    assert worse in page


def test_methods_that_learn_nothing_or_end_below_their_start_are_named(tmp_path: Path):
    write_run(tmp_path, "opd", 0, [START, START, START])
    write_run(tmp_path, "gkd", 0, [START, [0.8, 0.2, 0.5], [0.2, 0.3, 0.5]])
    write_run(tmp_path, "aopd", 0, [START, [0.8, 0.2, 0.5], [0.8, 0.6, 0.5]])
    found = [each.replace("\u00a0", " ") for each in describe_ends(load_frames([tmp_path]))[1:]]
    assert [each.split(":")[0] for each in found] == ["opd learned nothing", "gkd is not shown to end above its start"]
    assert re.match(r"opd learned nothing: .*\b0\.0 points more", found[0])
    assert "at 25.0 %, 5.0 points" in found[1]


def test_one_seed_ends_below_its_start_where_its_bracket_excludes_zero(tmp_path: Path):
    write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.1, 0.1, 0.5]], items=200)
    found = list(describe_ends(load_frames([tmp_path])))[1:]
    assert [each.split(":")[0] for each in found] == ["opd ends below its start"]


def test_nothing_was_learned_only_where_the_interval_leaves_next_to_nothing(tmp_path: Path):
    for seed, learned in enumerate((0.3, 0.5, 0.7)):  # a mean gain of 0, give or take 25 points
        write_run(tmp_path, "opd", seed, [START, [learned, 0.1, 0.5], [0.8, 0.1, 0.5]], items=200)
    found = list(describe_ends(load_frames([tmp_path])))[1:]
    assert [each.split(":")[0] for each in found] == ["opd is not shown to have learned"]
