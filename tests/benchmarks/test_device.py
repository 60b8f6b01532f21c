"""The benchmark of a device runs through on a CPU with small sizes, and a comparison tells what got worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from adapters.opd import OPD
from benchmarks.device import device_bench as bench
from benchmarks.device import device_figures as figures
from benchmarks.device import device_page
from benchmarks.device.device_figures import DeviceFigure, change, read_figures, write_figures
from benchmarks.device.random_step import Load, Shape, random_model, step_lines
from harness.config.training import Training


def test_a_step_has_the_load_that_its_figures_name():
    shape, load = Shape(64, 128, 2, 2, 256), Load(4, 8, 6)
    student, teacher = (random_model(shape, torch.float32, "cpu") for _ in range(2))
    lines = step_lines(OPD(), student, teacher, load, "cpu", **Training().model_dump())
    assert [line["step"] for line in lines] == [0, 1]
    assert all(4 * 8 < line["tokens"] <= 4 * (8 + 6) for line in lines)


@pytest.mark.slow
def test_the_script_measures_every_part_on_a_cpu(tmp_path: Path):
    result = CliRunner().invoke(bench.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    device, found = read_figures(tmp_path / "baselines" / "cpu-small-sizes.json")
    assert device == "cpu, small sizes"
    assert {name.partition(",")[0] for name in found} >= {
        "ours_aopd",
        "dense_aopd",
        "OPD step",
        "AOPD step",
        "generation",
    }
    assert all(figure.value == figure.value for figure in found.values())
    page = (tmp_path / "RESULTS-cpu-small-sizes.md").read_text(encoding="utf-8")
    assert "left out" not in page
    assert all(name in page for name in found)


def test_no_measure_begins_when_the_time_is_up(tmp_path: Path):
    result = CliRunner().invoke(bench.app, ["--device", "cpu", "--seconds", "-1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert len(read_figures(tmp_path / "baselines" / "cpu-small-sizes.json")[1]) == 1
    assert "the time was up" in (tmp_path / "RESULTS-cpu-small-sizes.md").read_text(encoding="utf-8")


def test_the_page_has_the_goals_and_the_operation_next_to_its_peers():
    found = {
        "ours_aopd, hidden 1024: time": 8.0, "ours_aopd, hidden 1024: memory": 797.0, "ours_opd, hidden 1024: time": 8.0,
        "ours_aopd, hidden 1024: needed products": 400.0, "ours_aopd, hidden 1024: recomputed ones counted": 500.0,
        "dense_aopd, hidden 1024: memory": 8000.0, "ours_jsd, hidden 1024: time": 9.0, "trl_jsd, hidden 1024: time": 6.0,
    }  # fmt: skip
    measured = [
        DeviceFigure(device_page.PEAK, 800, "GFLOP/s", "more"),
        *(DeviceFigure(name, value, "") for name, value in found.items()),
    ]
    goals = {goal.what: goal for goal in device_page.goals({figure.name: figure.value for figure in measured})}
    assert goals["AOPD, hidden 1024: ms, forward and backward"].reached == "yes"
    assert goals["AOPD over OPD, hidden 1024: time"].value == 1
    assert (
        goals["AOPD, hidden 1024: share of the fastest product's rate, recomputed products counted"].reached == "**no**"
    )
    assert goals["JSD over TRL's, hidden 1024: time"].value == 1.5
    # 151,936 x 1,024 in bfloat16 are 296.75 MiB
    assert goals["AOPD beyond the head's gradient over full logits, hidden 1024: memory"].value == 500.25 / 8000
    assert goals["teacher, hidden 1024: ms"].reached == "not measured"
    text = device_page.page("gpu", "made so", measured, ["a step: out of memory"])
    assert "| aopd, hidden 1024 | 8; 797; 0.50 |" in text
    assert "- left out: a step: out of memory" in text


def test_a_measure_that_fails_is_named_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails() -> Iterator[DeviceFigure]:
        raise TypeError("no such argument")

    works = [("one", fails), ("two", lambda: iter([DeviceFigure("two", 2.0, "ms")]))]
    monkeypatch.setattr(bench, "_everything", lambda *_: iter(works))
    result = CliRunner().invoke(bench.app, ["--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "two" in read_figures(tmp_path / "baselines" / "cpu-small-sizes.json")[1]
    assert "left out: one: TypeError: no such argument" in (tmp_path / "RESULTS-cpu-small-sizes.md").read_text()


@pytest.mark.parametrize(
    ("better", "before", "after", "worse"),
    [("less", 10, 12, 0.2), ("less", 10, 5, -0.5), ("more", 10, 8, 0.25), ("more", 10, 20, -0.5)],
)
def test_a_change_is_a_share_of_what_was(better: figures.Better, before: float, after: float, worse: float):
    found = change(DeviceFigure("a", before, "ms", better), DeviceFigure("a", after, "ms", better))
    assert found == pytest.approx(worse)


@pytest.mark.parametrize(("value", "code"), [(10.9, 0), (11.2, 1), (None, 1)])
def test_more_than_ten_percent_and_a_missing_figure_fail(value: float | None, code: int, tmp_path: Path):
    write_figures(tmp_path / "before.json", "gpu", [DeviceFigure("time", 10, "ms")])
    write_figures(tmp_path / "after.json", "gpu", [] if value is None else [DeviceFigure("time", value, "ms")])
    result = CliRunner().invoke(figures.app, [str(tmp_path / "before.json"), str(tmp_path / "after.json")])
    assert result.exit_code == code, result.output


def test_figures_of_two_devices_are_not_compared(tmp_path: Path):
    for name in ("one", "two"):
        write_figures(tmp_path / f"{name}.json", name, [DeviceFigure("time", 10, "ms")])
    result = CliRunner().invoke(figures.app, [str(tmp_path / "one.json"), str(tmp_path / "two.json")])
    assert result.exit_code == 2
