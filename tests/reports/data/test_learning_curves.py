"""Learning curves in reports and comparisons: what is read, what is compared at equal learning, and what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.rundir.files import CURVE
from harness.rundir.records.training_records import CurvePoint
from harness.stats.estimates import Estimate
from harness.stats.learning.equal_learning import NO_COMMON_LEARNING
from reports.compare.comparison import Comparison
from reports.compare.render_comparison import to_markdown
from reports.compare.rows import AVERAGE
from reports.data.frames import load_frames
from reports.data.learning_curves import (
    KEPT,
    OBSTACLE,
    OTHER_ITEMS,
    OTHER_STARTS,
    StagePair,
    at_equal_learning_of,
    curve_frame,
    equal_learning_table,
)
from reports.data.methods import find_methods
from reports.document.blocks import Grid
from reports.figures.draw_curves import draw_curves
from reports.report.build import build_report
from reports.report.report_data import ReportData
from reports.report.sections import curves_section
from reports.report.sections.curves_section import equal_learning_grid
from reports.study.equal_learning_blocks import equal_learning_blocks
from reports.study.study_results import collect
from tests.support.reports.run_factory import PROBES, STAGES, curve_points, write_run
from tests.support.reports.study_factory import constant, fill, study

FAST, SLOW = [0.2, 0.5, 0.8], [0.2, 0.3, 0.6]


def write_curves(run: Path, stage: int, scores: Mapping[str, Sequence[float]], items: int = 20) -> None:
    """Write a stage's curve, see `curve_points`."""
    lines = [CurvePoint.model_validate(point).model_dump_json() for point in curve_points(scores, items)]
    (folder,) = (path / "train" for path in run.glob(f"stage_{stage}_*"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CURVE).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """OPD and AOPD, three seeds. In stage 1 AOPD learns faster and, at the same learning, loses less of the probe."""
    for seed in range(3):
        slow, fast = (write_run(tmp_path, adapter, seed) for adapter in ("opd", "aopd"))
        write_curves(slow, 1, {STAGES[0]: SLOW, PROBES[0]: [0.8, 0.7 - 0.05 * seed, 0.4]})
        write_curves(fast, 1, {STAGES[0]: FAST, PROBES[0]: [0.8, 0.7, 0.6]})
        write_curves(slow, 2, {STAGES[1]: [0.1, 0.2, 0.3], STAGES[0]: [0.6, 0.5, 0.4], PROBES[0]: [0.4, 0.4, 0.4]})
        write_curves(fast, 2, {STAGES[1]: [0.5, 0.7, 0.9], STAGES[0]: [0.8, 0.7, 0.6], PROBES[0]: [0.6, 0.6, 0.6]})
        write_run(tmp_path, "none", seed)
    return tmp_path


def kept(pair: StagePair | None) -> Estimate:
    """Return the difference at equal learning of a pair that is comparable."""
    assert pair is not None
    assert pair.obstacle == ""
    return pair.kept.difference


def test_differences_are_of_each_stage_and_of_those_that_are_comparable(runs: Path):
    table = equal_learning_table(load_frames([runs]))
    assert list(table["label"] + " " + table["against"]) == ["aopd opd"] * 3
    assert list(table["stage"]) == [0, 1, 2]
    assert list(table["obstacle"]) == ["", "", NO_COMMON_LEARNING]
    mean, first, second = table["difference"]
    # Common learning is 0.2 to 0.56. AOPD has one level inside, 0.5, and so is read there; seed 0 of OPD is at 0.3: 0.7,
    # at 0.5: 0.5, at 0.56: 0.44; AOPD at 0.5: 0.7, at 0.56: 0.68.
    slow = (0.3 * (0 - 0.3) / 2 + 0.06 * (-0.3 - 0.36) / 2) / 0.36
    fast = (0.3 * (0 - 0.1) / 2 + 0.06 * (-0.1 - 0.12) / 2) / 0.36
    opd, aopd = find_methods([runs / "tiny/opd", runs / "tiny/aopd"])
    by_seed = kept(at_equal_learning_of(opd, aopd, stage=1)).by_seed
    assert by_seed[0] == pytest.approx(fast - slow)
    assert first.mean == pytest.approx(sum(by_seed.values()) / 3)
    assert (mean.mean, first.seeds, second.seeds) == (pytest.approx(first.mean), 3, 0)
    assert list(table["without"]) == ["without stage 2", "", ""]
    assert equal_learning_grid(table).rows[0][1] == "mean over stages, without stage 2"


def test_a_mean_of_no_stage_says_what_is_in_the_way_of_each(runs: Path):
    write_curves(runs / "tiny/aopd/default/seed0", 1, {STAGES[0]: FAST, PROBES[0]: [0.8, 0.7, 0.6]}, items=10)
    mean = equal_learning_table(load_frames([runs])).to_dict("records")[0]
    assert mean["obstacle"] == f"{OTHER_ITEMS} in stage 1; {NO_COMMON_LEARNING.removeprefix(OBSTACLE)} in stage 2"
    assert (mean["seeds"], mean["paired"]) == (0, 0)


def test_a_comparison_has_a_row_over_stages_and_one_for_each(runs: Path):
    compared = Comparison(find_methods([runs / "tiny/opd", runs / "tiny/aopd"]))
    rows = {row.task: row for row in compared.rows if row.quantity is KEPT}
    assert list(rows) == [AVERAGE, *STAGES]
    assert rows[AVERAGE].difference.interval.mean > 0
    assert rows[STAGES[1]].learning == NO_COMMON_LEARNING
    assert not rows[STAGES[1]].judged
    assert NO_COMMON_LEARNING in to_markdown(compared)
    assert [note for note in compared.notes() if "average" in note and "without stage 2" in note]


def test_curves_on_different_items_are_not_compared(runs: Path):
    run = runs / "tiny/aopd/default/seed0"
    write_curves(run, 1, {STAGES[0]: FAST, PROBES[0]: [0.8, 0.7, 0.6]}, items=10)
    table = equal_learning_table(load_frames([runs]))
    assert table.set_index("stage").loc[1, "obstacle"] == OTHER_ITEMS


def test_seeds_that_start_from_different_weights_are_not_paired(tmp_path: Path):
    for adapter, weights in (("opd", "one"), ("aopd", "other")):
        for seed in range(3):
            write_curves(write_run(tmp_path, adapter, seed, weights=weights), 1, {STAGES[0]: FAST, PROBES[0]: FAST})
    assert list(equal_learning_table(load_frames([tmp_path]))["obstacle"]) == [OTHER_STARTS]
    compared = Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"]))
    assert not any(row.judged for row in compared.rows if row.quantity is KEPT)


def test_a_study_compares_every_pair_that_it_names_from_each_start(tmp_path: Path):
    starts = {
        "title": "Start",
        "key": "student.strength",
        "values": ["weak", "strong"],
        "entries": ["opd", "aopd", "fkl"],
    }
    methods = {"title": "Method", "entries": ["opd", "aopd", "fkl"], "against": {"aopd": "opd", "fkl": "aopd"}}
    plan = study(tmp_path, {"start": starts, "method": methods})
    fill(plan, lambda spec: constant(spec, 0.6, 0.4))
    for spec in plan.specs:
        lost = {"opd": 0.4, "aopd": 0.6, "fkl": 0.6}[spec.entry]
        write_curves(spec.path, 1, {spec.stages[0].name: FAST, spec.suite.probes[0]: [0.8, 0.7, lost]})
    (grid,) = (block for block in equal_learning_blocks(collect(plan)) if isinstance(block, Grid))
    assert [row[0] for row in grid.rows] == [
        f"{start} start: {pair}" for start in ("weak", "strong") for pair in ("aopd − opd", "fkl − aopd")
    ]
    # FAST reaches 0.8; up to 0.74 both are read at 0.2, 0.5 and 0.74, where OPD is at -0.34 and AOPD at -0.18.
    difference = (0.24 * (-0.18 + 0.34) / 2) / 0.54
    assert [row[4].split("\u00a0")[0].split(" ")[0] for row in grid.rows] == [f"{100 * difference:+.1f}", "+0.0"] * 2


def test_without_curves_there_is_no_section_and_a_reason(tmp_path: Path):
    paths = [write_run(tmp_path, adapter) for adapter in ("opd", "aopd")]
    assert curves_section.make_section(ReportData(load_frames(paths))) is None
    opd, aopd = find_methods(paths)
    assert at_equal_learning_of(opd, aopd) is None


def test_a_stage_that_still_trains_has_no_curve_to_compare(runs: Path):
    for done in runs.glob("tiny/aopd/default/seed[12]/stage_1_*/train/done.json"):
        done.unlink()
    first = equal_learning_table(load_frames([runs])).set_index("stage").loc[1]
    assert (first["paired"], first["obstacle"]) == (1, "")
    for done in runs.glob("tiny/aopd/default/seed0/stage_1_*/train/done.json"):
        done.unlink()
    assert 1 not in list(equal_learning_table(load_frames([runs]))["stage"])


def test_one_task_is_compared_alone(runs: Path):
    opd, aopd = find_methods([runs / "tiny/opd", runs / "tiny/aopd"])
    assert set(kept(at_equal_learning_of(opd, aopd, [PROBES[0]])).items) == {PROBES[0]}
    assert at_equal_learning_of(opd, aopd, ["unknown"]) is None


def test_the_figure_has_a_panel_per_stage_with_a_line_per_seed_and_their_mean(runs: Path):
    points = curve_frame(load_frames([runs]))
    assert set(points["label"]) == {"opd", "aopd"}
    figure = draw_curves(points)
    assert len(figure.axes) == len(STAGES)
    for axes in figure.axes:
        assert len([line for line in axes.lines if np.size(line.get_xdata()) == 3]) == 2 * (3 + 1)


def test_orders_that_train_other_tasks_in_a_stage_have_panels_of_their_own(runs: Path):
    turned = write_run(runs, "opd", 0, order="turned", stages=STAGES[::-1])
    write_curves(turned, 1, {STAGES[1]: [0.1, 0.4, 0.6], PROBES[0]: [0.8, 0.7, 0.4]})
    figure = draw_curves(curve_frame(load_frames([runs])))
    titles = [axes.get_title("left").split("\n") for axes in figure.axes]
    assert [place for place, _ in titles] == ["tiny, default", "tiny, default", "tiny, turned"]
    assert [name[:2] for _, name in titles] == ["1:", "2:", "1:"]
    assert titles[0][1] != titles[2][1]
    (line,) = (line for line in figure.axes[2].lines if np.size(line.get_xdata()) == 3)
    assert np.asarray(line.get_xdata()) == pytest.approx([10, 40, 60])


@pytest.mark.slow
def test_the_page_shows_the_section_and_writes_its_tables(runs: Path):
    page = build_report([runs], runs / "report").read_text(encoding="utf-8")
    assert 'id="curves"' in page
    assert "not comparable: no common learning" in page
    assert {"learning_curves.csv", "equal_learning.csv"} <= {file.name for file in (runs / "report/tables").iterdir()}
