"""Texts stay inside figures, ink stays legible, and a configuration is shown once on the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from reports.data.frames import load_frames
from reports.document.blocks import Picture
from reports.figures import style
from reports.figures.draw_flips import draw_outcomes
from reports.report.page_writer import flatten
from reports.report.report_data import ReportData
from reports.report.sections import make_sections
from reports.report.sections.provenance_section import configurations
from reports.report.sections.training_section import read_tails
from tests.support.reports.run_factory import TAUGHT, write_run

QUANTILES = {"advantage_q01": -9.0, "advantage_q25": -0.1, "advantage_q75": 0.1, "advantage_q99": 0.6}


@pytest.fixture(scope="module")
def report_data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    root = tmp_path_factory.mktemp("runs")
    for adapter in ("opd", "aopd"):
        for seed in (0, 1):
            write_run(root, adapter, seed, logged=TAUGHT | QUANTILES)
    return ReportData(load_frames([root]), ())


@pytest.mark.slow
def test_no_text_leaves_its_figure(report_data: ReportData):
    blocks = [block for part in make_sections(report_data) for block in flatten(part.blocks)]
    drawn = [block for block in blocks if isinstance(block, Picture) and block.name != "drift"]
    assert len(drawn) > 10
    for picture in drawn:
        figure = picture.draw()
        figure.draw_without_rendering()
        (left, bottom), (right, top) = figure.get_tightbbox().get_points()
        width, height = figure.get_size_inches()
        assert min(left, bottom, width - right, height - top) > -0.03, picture.name


@pytest.mark.parametrize("colours", [style.HEAT, style.CHANGE])
def test_ink_is_whichever_of_black_and_white_has_the_higher_contrast(colours: str):
    for share in np.linspace(0, 1, 101):
        values = np.array(colormaps[colours](share)[:3])
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light = float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05
        contrast = {"black": light / 0.05, "white": 1.05 / light}
        assert contrast[style.ink_on(float(share), colours)] == max(contrast.values()) > 4.5


def test_the_longest_bar_ends_short_of_the_frame(report_data: ReportData):
    figure = draw_outcomes(report_data.flip_shares)
    low, high = figure.axes[0].get_xlim()
    bars = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    ends = [end for bar in bars for end in (bar.get_x(), bar.get_x() + bar.get_width())]
    assert low < min(ends) < 0
    assert max(ends) < high


def test_the_tails_of_the_advantage_are_stated_in_numbers(report_data: ReportData, tmp_path: Path):
    (sentence,) = read_tails(report_data)
    assert "opd −9.00 and +0.60 nats, a ratio of 15.00; aopd −9.00 and +0.60 nats" in sentence
    write_run(tmp_path, "opd")  # a step log without the outer quantiles
    assert read_tails(ReportData(load_frames([tmp_path]), ())) == []


def test_a_configuration_that_differs_by_adapter_and_seed_alone_is_shown_once(tmp_path: Path):
    for adapter, seed in (("opd", 0), ("opd", 1), ("aopd", 0)):
        _configure(write_run(tmp_path, adapter, seed), {"adapter": {"adapter": adapter}, "seed": seed, "steps": 5})
    found = configurations(load_frames([tmp_path]))
    assert list(found) == ["Configuration of the suite, without adapter and seed", "Adapter opd", "Adapter aopd"]
    assert json.loads(found["Configuration of the suite, without adapter and seed"]) == {"steps": 5}
    assert json.loads(found["Adapter aopd"])["entry"] == {"adapter": "aopd"}
    _configure(write_run(tmp_path, "aopd", 1), {"adapter": {"adapter": "aopd"}, "seed": 1, "steps": 6})
    found = configurations(load_frames([tmp_path]))
    assert [title.partition(": ")[2] for title in found][:2] == [
        "opd, seed 0; opd, seed 1; aopd, seed 0",
        "aopd, seed 1",
    ]


def _configure(run: Path, config: dict) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
