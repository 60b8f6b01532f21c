"""The page of a study: its numbers come from the run directories, and its verdicts from the numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.config.run_spec import RunSpec
from harness.pipeline.sweeps.study_runs import Plan
from reports.study.build_study import build_study
from reports.study.factors import factor_grid
from reports.study.study_plan import Config
from reports.study.study_results import collect
from tests.support.reports.run_factory import TAUGHT
from tests.support.reports.study_factory import constant, fill, study

FACTORS: dict[str, Any] = {
    "method": {"title": "Method", "entries": ["none", "opd", "aopd"]},
    "rate": {"title": "Learning rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4]},
    "start": {"title": "Start", "key": "student.strength", "values": ["weak", "strong"]},
    "order": {"title": "Order", "orders": ["default", "tools_first", "joint"], "seeds": [0, 1]},
    "threshold": {
        "title": "Threshold",
        "fixed": {"adapters.aopd.options.gate": "prob_diff"},
        "key": "adapters.aopd.options.threshold",
        "values": [-1.0, 0.2, 1.0],
        "entries": ["aopd"],
        "seeds": [0],
    },
}
NOISE = (0.0, 0.01, 0.02)


def scores(spec: RunSpec) -> list[list[float]]:
    """AOPD learns more, the more so from the weak start, and keeps less; joint training learns most."""
    strong = spec.suite.student.strength == "strong"  # type: ignore[union-attr]
    if spec.entry == "none":
        return constant(spec, 0.1, 0.1)
    gain = (0.05 if strong else 0.2) * (spec.entry == "aopd")
    learned = 0.6 + gain + 0.1 * (spec.order == "joint") - NOISE[spec.seed] * (spec.entry == "aopd")
    learned -= 0.2 * (spec.suite.training.optimizer.lr < 2e-4)
    return constant(spec, learned, learned - (0.3 if spec.entry == "aopd" else 0.2) - NOISE[-spec.seed - 1])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    made = study(tmp_path_factory.mktemp("study"), FACTORS)
    fill(made, scores, entropy=lambda spec: {"opd": 0.2, "aopd": 0.4}.get(spec.entry, 0.0) + 0.01 * spec.seed)
    return made


@pytest.fixture(scope="module")
def page(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_study(plan, tmp_path_factory.mktemp("docs") / "results" / "trial.md")


@pytest.fixture(scope="module")
def runs(page: Path) -> pd.DataFrame:
    return pd.read_csv(page.parent / "trial" / "runs.csv", dtype={"setting": str}, keep_default_na=False)


def matrix(run: Path) -> pd.DataFrame:
    """Read a run's scores by stage and task, without any of the reports' code."""
    rows = [
        (int(file.parts[-4].split("_")[1]), file.parts[-2], json.loads(file.read_text())["score"])
        for file in run.glob("stage_*/eval/*/results.json")
    ]
    return pd.DataFrame(rows, columns=["stage", "task", "score"]).pivot(index="stage", columns="task", values="score")


def first_learned(run: Path) -> float:
    """R[1][1]: the first stage's task right after the first stage."""
    return matrix(run)["tiny_arithmetic"].tolist()[1]


def learning(run: Path) -> float:
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    cells = matrix(run).to_dict("index")
    found = [cells[i][task] for i, stage in enumerate(stages, start=1) for task in stage["trains"]]
    return float(np.mean(found))


def interval(values: list[float]) -> str:
    """Write points as the page does, with the t interval from scipy."""
    mean = np.mean(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


@pytest.mark.parametrize(
    ("claim", "figure", "paper"),
    [
        ("learns tiny_arithmetic better than OPD, {} start", first_learned, {"weak": "+8.34", "strong": "+4.09"}),
        ("learns more than OPD, {} start", learning, {"weak": "| better |", "strong": "| better |"}),
    ],
)
def test_a_learning_claim_is_the_paired_difference_of_the_run_directories(
    plan: Plan, page: Path, claim: str, figure: Callable[[Path], float], paper: dict[str, str]
):
    text = page.read_text(encoding="utf-8").replace("\\", "")
    for suite, start in (("tiny", "weak"), ("tiny-start-strong", "strong")):
        folder = plan.specs[0].out / suite
        runs = [[folder / name / "default" / f"seed{seed}" for name in ("aopd", "opd")] for seed in (0, 1, 2)]
        paired = [figure(aopd) - figure(opd) for aopd, opd in runs]
        (line,) = [row for row in text.splitlines() if f"| AOPD {claim.format(start)} |" in row.replace("*", "")]
        assert interval(paired) in line
        assert paper[start] in line


def test_the_page_counts_the_runs_that_train_and_their_steps(plan: Plan, page: Path):
    logs = [sum(1 for log in spec.path.glob("stage_*/train/steps.jsonl") for _ in log.open()) for spec in plan.specs]
    trained = [steps for steps in logs if steps]
    assert 0 < len(trained) < len(logs)
    found = re.search(
        r"- (\d+) runs of .* steps each, ([\d,]+) steps in all; (\d+) more runs", page.read_text(encoding="utf-8")
    )
    assert found
    assert [int(each.replace(",", "")) for each in found.groups()] == [
        len(trained),
        sum(logs),
        len(logs) - len(trained),
    ]


def test_every_figure_of_the_csv_follows_from_its_run_directory(plan: Plan, runs: pd.DataFrame):
    assert len(runs.drop_duplicates(["factor", "setting", "adapter", "order", "seed"])) == len(plan.points)
    learned = runs[runs["figure"] == "learning_accuracy"]
    for row in learned.itertuples():
        run = plan.specs[0].out / str(row.suite) / str(row.adapter) / str(row.order) / f"seed{row.seed}"
        assert row.value == pytest.approx(learning(run), abs=1e-6)


def test_retention_of_the_first_task_follows_from_the_run_directory(plan: Plan, runs: pd.DataFrame):
    kept = runs[(runs["figure"] == "first_retained") & (runs["factor"] == "method") & (runs["adapter"] == "opd")]
    cells = matrix(plan.specs[0].out / "tiny" / "opd" / "default" / "seed1")["tiny_arithmetic"]
    (value,) = kept.loc[kept["seed"] == 1, "value"]
    assert value == pytest.approx(cells[4] - cells[1])


def test_the_table_of_a_factor_is_the_mean_of_its_runs(plan: Plan, runs: pd.DataFrame):
    grid = factor_grid(collect(plan), "rate")
    for row in grid.rows:
        setting, method = row[0].removesuffix(" (own)"), row[1]
        rows = runs[(runs["factor"] == "rate") & (runs["setting"] == setting) & (runs["adapter"] == method)]
        values = rows.loc[rows["figure"] == "average_accuracy", "value"]
        written = float(row[grid.header.index("ACC %")].split(" ")[0])
        assert written == pytest.approx(100 * values.mean(), abs=0.0501)


def test_a_factor_with_fewer_seeds_takes_only_these_of_the_base_run(plan: Plan):
    grid = factor_grid(collect(plan), "order")
    assert {row[2] for row in grid.rows} == {"2"}


def test_one_seed_has_no_interval(plan: Plan, page: Path):
    grid = factor_grid(collect(plan), "threshold")
    assert [row[0] for row in grid.rows] == ["−1", "0.2", "1"]
    assert not any("[" in cell for row in grid.rows for cell in row)
    assert "One seed: no difference" in page.read_text(encoding="utf-8")


def test_joint_runs_give_the_other_orders_their_intransigence(plan: Plan):
    grid = factor_grid(collect(plan), "order")
    column = grid.header.index("intransigence")
    cells = {(row[0], row[1]): row[column] for row in grid.rows}
    joint = learning(plan.specs[0].out / "tiny" / "opd" / "joint" / "seed0")
    staged = learning(plan.specs[0].out / "tiny" / "opd" / "tools_first" / "seed0")
    assert cells["tools_first", "opd"].startswith(f"{100 * (joint - staged):+.1f}")
    assert cells["joint", "opd"] == "–"


def test_the_page_shows_its_figures_and_says_how_it_was_made(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (page.parent / name).stat().st_size > 5_000
    drawn = {file.stem for file in (page.parent / "trial").glob("*.png")}
    fields = ("entropy", "routed_fkl", "truncated_share")
    assert drawn == {
        "frontier",
        "factor-threshold",
        *(f"{name}-{f}" for name in ("training", "threshold") for f in fields),
    }
    for sentence in (
        "Commit f00dfeedf00d; no local changes",
        "harness study ",
        "2.13.0",
        "seeds 0, 1, 2",
        "tiny_short_sums",
    ):
        assert sentence in text
    assert not list(page.parent.glob(".building-*"))


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def test_a_page_has_the_sections_that_its_study_has_data_for(page: Path):
    assert headings(page.read_text(encoding="utf-8")) == [
        "What shows and what does not",
        "Learning against forgetting",
        "What holds under other ways of answering",
        "What is kept at matched learning",
        "Entropy, routing and truncation in training",
        "Warnings in training",
        "One factor at a time",
        "How this was made",
    ]


def test_a_study_has_an_html_page_with_the_same_sections(page: Path):
    parsed = page.with_suffix(".html").read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", parsed) == headings(page.read_text(encoding="utf-8"))
    assert parsed.count("<svg") == len(list((page.parent / "trial").glob("*.svg")))


OWN_CLAIM = """
title: Mine against theirs
source: our own notes
primary: [learns]
claims:
  - name: learns
    text: mine learns all tasks better than theirs
    expression: metric(mine, learning_accuracy) > metric(theirs, learning_accuracy)
    unit: points
    smallest_effect: 0
"""


@pytest.mark.usefixtures("blank_figures")
def test_what_is_compared_comes_from_the_study_whatever_its_entries_are_called(tmp_path: Path):
    """A study of two entries of a user's own, with a claims file next to its YAML; nobody is called opd or aopd."""
    (tmp_path / "mine.yaml").write_text(OWN_CLAIM, encoding="utf-8")
    plan = study(
        tmp_path,
        {"rate": {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4, 4.0e-4]}},
        overrides=["adapters.mine={adapter: aopd}", "adapters.theirs={adapter: opd}"],
        entries=["theirs", "mine"],
        against={"mine": "theirs"},
        claims=["mine.yaml"],
    )
    more = {"mine": 0.02, "theirs": 0.0}
    fill(
        plan,
        lambda s: constant(s, 0.6 + more[s.entry] + 0.005 * s.seed * (s.entry == "mine"), 0.3),
        logged=lambda _: TAUGHT,
    )
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8").replace("\\", "")
    assert (
        "Primary claim 1, greedy decoding: mine learns all tasks better than theirs, weak start: supported, +" in text
    )
    assert "3 of 3 settings of mine matched" in text, text[:9000]
    assert "mine minus theirs:" in text
    assert re.search(r"theirs \(lr 0\.0001, the lowest tried, .*most of 3\) learned 60\.0", text)
    assert "mine at 0.0001" in text or "mine: learning is highest at" in text
    assert not re.search(r"\b(opd|aopd|OPD|AOPD)\b", text.partition("How this was made")[0])


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(plan: Plan, page: Path):
    def written() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in [page, *(page.parent / "trial").iterdir()]}

    before = written()
    build_study(plan, page)
    assert written() == before


@pytest.mark.usefixtures("blank_figures")
def test_missing_and_unfinished_runs_are_named_and_left_out(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method", "entries": ["opd", "aopd"]}}, seeds=[0, 1, 2])
    fill(plan, lambda spec: constant(spec, 0.6, 0.3))
    absent, unfinished = (spec for spec in plan.specs if spec.seed == 2)
    (absent.path / "manifest.json").unlink()
    manifest = json.loads((unfinished.path / "manifest.json").read_text())
    (unfinished.path / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "The numbers below cover what exists" in text
    assert f"{absent.path}: not started" in text
    assert f"{unfinished.path}: not finished" in text
    assert "seeds 0, 1;" in text
    assert set(pd.read_csv(tmp_path / "page" / "runs.csv")["seed"]) == {0, 1}
    results = collect(plan)
    assert results.mean(Config("tiny", "opd"), "learning_accuracy").seeds == 2


def test_runs_of_one_folder_that_are_missing_for_one_reason_are_one_line(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method", "entries": ["opd", "aopd"]}}, seeds=[0, 1, 2])
    fill(plan, lambda spec: constant(spec, 0.6, 0.3))
    for spec in plan.specs:
        if spec.entry == "aopd" or spec.seed == 2:
            (spec.path / "manifest.json").unlink()
    opd, aopd = (next(spec.path.parent for spec in plan.specs if spec.entry == entry) for entry in ("opd", "aopd"))
    assert set(collect(plan).missing) == {f"{opd}/seed2: not started", f"{aopd}: not started: seeds 0, 1, 2"}


@pytest.mark.usefixtures("blank_figures")
def test_a_study_of_the_control_alone_still_has_a_page(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method", "entries": ["none"]}}, seeds=[0])
    fill(plan, lambda spec: constant(spec, 0.1, 0.1))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert headings(text) == [
        "What shows and what does not",
        "Learning against forgetting",
        "Warnings in training",
        "One factor at a time",
        "How this was made",
    ]
    assert re.search("Nothing is judged: .*3 seeds", text)


@pytest.mark.usefixtures("blank_figures")
def test_runs_with_different_commits_or_local_changes_are_reported(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method"}}, seeds=[0])
    fill(plan, lambda spec: constant(spec, 0.6, 0.3))
    file = plan.specs[0].path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sessions"][0]["git"] = {"commit": "beef" * 10, "dirty": True}
    file.write_text(json.dumps(manifest))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "commit: beefbeefbeef, f00dfeedf00d" in text
    assert re.search("1 of 2 runs .*uncommitted changes", text)
