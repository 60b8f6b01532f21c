"""The page of a study: its numbers come from the run directories, and its verdicts from the numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.pipeline import RunSpec
from harness.study import Plan
from reports.study import build_study
from reports.study_claims import CONTRADICTED, NO_RUNS, NOT_RESOLVED, SHOWS, UNMATCHED, claims, judge, pairs
from reports.study_data import Config, collect
from reports.study_views import factor_grid, recipe_grid
from reports.tables import Interval
from tests.reports.study_factory import constant, fill, study, write_finished

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


def test_the_learning_claim_is_the_paired_difference_of_the_run_directories(plan: Plan, page: Path):
    text = page.read_text(encoding="utf-8")
    for suite, start in (("tiny", "weak"), ("tiny-start-strong", "strong")):
        folder = plan.specs[0].out / suite
        paired = [
            learning(folder / "aopd" / "default" / f"seed{seed}") - learning(folder / "opd" / "default" / f"seed{seed}")
            for seed in (0, 1, 2)
        ]
        (line,) = [
            row
            for row in text.splitlines()
            if f"learns more than OPD from a {start} start" in row and "best" not in row
        ]
        assert interval(paired) in line


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
    assert [row[0] for row in grid.rows] == ["−1 (pure FKL)", "0.2", "1 (pure OPD)"]
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


def test_the_recipe_table_reads_the_start_and_the_gain_of_each_own_stage(plan: Plan):
    grid = recipe_grid(collect(plan))
    row = dict(zip(grid.header, grid.rows[0], strict=True))
    assert row["weak: before any stage"].startswith("10.0 (10.0 to 10.0)")
    assert row["opd, weak: own stage"] == "+50.0"
    assert row["none, weak: own stage"] == "+0.0"
    assert "none" not in row["lifted ≥ 20"]
    assert "opd (weak)" in row["lifted ≥ 20"]


def test_the_page_shows_its_figures_and_says_how_it_was_made(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (page.parent / name).stat().st_size > 5_000
    assert len(list((page.parent / "trial").glob("*.png"))) == 4
    for said in ("Commit f00dfeedf00d; no local changes", "make study", "2.13.0", "seeds 0, 1, 2", "tiny_short_sums"):
        assert said in text
    assert not list(page.parent.glob(".building-*"))


def test_the_same_runs_give_the_same_bytes(plan: Plan, page: Path, tmp_path: Path):
    again = build_study(plan, tmp_path / "trial.md")
    assert again.read_bytes() == page.read_bytes()
    for file in (page.parent / "trial").iterdir():
        assert (tmp_path / "trial" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (Interval(0.1, 0.01, 0.19, 3), SHOWS),
        (Interval(-0.1, -0.19, -0.01, 3), CONTRADICTED),
        (Interval(0.1, -0.01, 0.21, 3), NOT_RESOLVED),
        (Interval(0.1, float("nan"), float("nan"), 1), NOT_RESOLVED),
        (Interval(float("nan"), float("nan"), float("nan"), 0), NO_RUNS),
    ],
)
def test_a_verdict_follows_from_the_interval(difference: Interval, verdict: str):
    assert judge(difference) == verdict


def verdicts(folder: Path, learned: dict[str, list[float]], kept: dict[str, list[float]]) -> dict[str, str]:
    """Return the verdicts on a study at one learning rate and the weak start, by the claim's first words."""
    factors = {"method": {"title": "Method", "entries": ["opd", "aopd"]}}
    plan = study(folder, factors, seeds=range(len(learned["opd"])))
    fill(
        plan, lambda s: constant(s, learned[s.entry][s.seed], kept[s.entry][s.seed]), lambda s: float(s.entry == "opd")
    )
    found = {claim.claim: claim.verdict for claim in claims(collect(plan))}
    return {
        "learns": found["AOPD learns more than OPD from a weak start"],
        "strong": found["AOPD learns more than OPD from a strong start"],
        "entropy": found["AOPD keeps a higher entropy in training, weak start"],
        "retains": found["AOPD retains tiny_arithmetic better after the later stages, weak start"],
    }


def test_a_clear_gain_shows_and_leaves_retention_uncompared(tmp_path: Path):
    found = verdicts(
        tmp_path,
        {"opd": [0.5, 0.5, 0.5], "aopd": [0.8, 0.79, 0.81]},
        {"opd": [0.2, 0.2, 0.2], "aopd": [0.75, 0.75, 0.75]},
    )
    assert found == {"learns": SHOWS, "strong": NO_RUNS, "entropy": CONTRADICTED, "retains": UNMATCHED}


def test_a_clear_loss_contradicts(tmp_path: Path):
    learned = {"opd": [0.8, 0.8, 0.8], "aopd": [0.5, 0.49, 0.51]}
    assert verdicts(tmp_path, learned, learned)["learns"] == CONTRADICTED


def test_a_gain_in_one_seed_of_three_is_not_resolved(tmp_path: Path):
    learned = {"opd": [0.5, 0.5, 0.5], "aopd": [0.9, 0.5, 0.45]}
    assert verdicts(tmp_path, learned, learned)["learns"] == NOT_RESOLVED


def test_one_seed_resolves_nothing(tmp_path: Path):
    learned = {"opd": [0.5], "aopd": [0.9]}
    assert verdicts(tmp_path, learned, learned)["learns"] == NOT_RESOLVED


@pytest.mark.parametrize(("kept", "verdict"), [(0.5, SHOWS), (0.1, CONTRADICTED), (0.3, NOT_RESOLVED)])
def test_retention_is_judged_where_learning_is_matched(tmp_path: Path, kept: float, verdict: str):
    found = verdicts(
        tmp_path,
        {"opd": [0.6, 0.6, 0.6], "aopd": [0.62, 0.61, 0.63]},
        {"opd": [0.3, 0.3, 0.3], "aopd": [kept, kept + 0.02, kept + 0.05]},
    )
    assert found["retains"] == verdict


def test_each_aopd_setting_stands_beside_the_opd_setting_closest_in_learning(tmp_path: Path):
    rates = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4, 4.0e-4]}
    plan = study(tmp_path, {"rate": rates}, seeds=[0, 1])
    levels = {"opd": {1e-4: 0.4, 2e-4: 0.6, 4e-4: 0.7}, "aopd": {1e-4: 0.58, 2e-4: 0.72, 4e-4: 0.9}}
    fill(plan, lambda s: constant(s, levels[s.entry][s.suite.training.optimizer.lr], 0.3))
    found = [(pair.rates, pair.matched) for pair in pairs(collect(plan))]
    assert found == [((1e-4, 2e-4), True), ((2e-4, 4e-4), True), ((4e-4, 4e-4), False)]


def test_pairs_have_equal_seeds(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method"}}, seeds=[0, 1])
    for spec in plan.specs:
        if (spec.entry, spec.seed) != ("opd", 1):
            write_finished(spec, constant(spec, 0.6, 0.3))
    assert pairs(collect(plan)) == []


def test_missing_and_unfinished_runs_are_named_and_left_out(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method", "entries": ["opd", "aopd"]}}, seeds=[0, 1, 2])
    fill(plan, lambda spec: constant(spec, 0.6, 0.3))
    absent, unfinished = (spec for spec in plan.specs if spec.seed == 2)
    (absent.path / "manifest.json").unlink()
    manifest = json.loads((unfinished.path / "manifest.json").read_text())
    (unfinished.path / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "2 of the study's runs are missing or unfinished" in text
    assert f"{absent.path}: not started" in text
    assert f"{unfinished.path}: not finished" in text
    assert "seeds 0, 1," in text
    assert set(pd.read_csv(tmp_path / "page" / "runs.csv")["seed"]) == {0, 1}
    results = collect(plan)
    assert results.mean(Config("tiny", "opd"), "learning_accuracy").seeds == 2


def test_a_study_of_the_control_alone_still_has_a_page(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method", "entries": ["none"]}}, seeds=[0])
    fill(plan, lambda spec: constant(spec, 0.1, 0.1))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.count("Not drawn") == 3
    assert NO_RUNS in text


def test_runs_that_differ_in_commit_or_were_made_with_changes_are_said_to(tmp_path: Path):
    plan = study(tmp_path, {"method": {"title": "Method"}}, seeds=[0])
    fill(plan, lambda spec: constant(spec, 0.6, 0.3))
    file = plan.specs[0].path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sessions"][0]["git"] = {"commit": "beef" * 10, "dirty": True}
    file.write_text(json.dumps(manifest))
    text = build_study(plan, tmp_path / "page.md").read_text(encoding="utf-8")
    assert "The runs differ in commit: beefbeefbeef, f00dfeedf00d" in text
    assert "1 of 2 runs were made with uncommitted changes" in text
