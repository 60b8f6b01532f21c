"""Plans before runs: variances recovered from written runs, what a suite cannot resolve, looks, priors named as such."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import ConfigError
from harness.rundir.files import read_results, write_cell
from harness.stats.design import Components, Design, detectable_difference
from harness.stats.estimates import Estimate, ItemTable
from reports.claims.claim_file import ClaimEntry
from reports.data.methods import find_methods
from reports.planning.pilot import NoPlan, Planning, crossed_table, plan_from_pilot, plan_from_priors
from reports.planning.power_plan import plan_claim
from reports.terminal.plan_command import compare_two
from tests.support.models import write_yaml
from tests.support.reports.run_factory import write_run

TRUE = Components(seeds=0.02**2, clusters=0.05**2, interaction=0.06**2, answers=2 * 0.08**2)
ANSWERS, ITEMS = 4, 80
LEARNED = ClaimEntry.model_validate(
    {
        "name": "learns", "text": "AOPD learns {task} better", "unit": "points", "smallest_effect": 0,
        "expression": "metric(aopd, learned) > metric(opd, learned)", "scope": {"tasks": ["first"]},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seeds of two methods whose first task was drawn from a crossed model with the components TRUE."""
    folder = tmp_path_factory.mktemp("pilot")
    random = np.random.default_rng(0)
    clusters = random.normal(0, TRUE.clusters**0.5, ITEMS)
    for seed in range(8):
        difference = random.normal(0.03, TRUE.seeds**0.5) + clusters + random.normal(0, TRUE.interaction**0.5, ITEMS)
        for adapter, part in (("opd", 0.0), ("aopd", difference)):
            run = write_run(folder, adapter, seed, items=ITEMS)
            answers = 0.5 + part + random.normal(0, 0.08, (ANSWERS, ITEMS))
            cell = run / "stage_1_tiny_arithmetic/eval/tiny_arithmetic"
            frame = pd.read_parquet(cell / "samples.parquet")
            several = pd.concat([frame.assign(score=row) for row in answers], ignore_index=True)
            summary = read_results(cell)
            assert summary is not None
            shutil.rmtree(cell)
            write_cell(cell, summary.model_copy(update={"score": float(answers.mean()), "samples": ANSWERS}), several)
    return folder


def planned(claims: list[ClaimEntry], folder: Path) -> list[Planning | NoPlan]:
    return list(plan_from_pilot([(claim, "") for claim in claims], find_methods([folder], least=1)))


def test_the_components_are_recovered_from_run_directories(pilot: Path):
    (found,) = planned([LEARNED], pilot)
    assert isinstance(found, Planning)
    assert found.design == Design(8, ITEMS, ANSWERS)
    for part in ("clusters", "interaction", "answers"):
        assert getattr(found.components, part) == pytest.approx(getattr(TRUE, part), rel=0.35), part
    assert 0.2 * TRUE.seeds < found.components.seeds < 4 * TRUE.seeds  # eight seeds say little more


def test_costs_are_those_of_the_pilot_s_runs(pilot: Path):
    (found,) = planned([LEARNED], pilot)
    assert isinstance(found, Planning)
    # Each run took 40 seconds, of which 13.5 evaluated.
    assert found.costs.hours(Design(1, ITEMS, ANSWERS)) == pytest.approx(2 * 40 / 3600)
    assert found.costs.hours(Design(1, 2 * ITEMS, ANSWERS)) == pytest.approx(2 * 53.5 / 3600)


def test_a_table_s_mean_is_the_effect_over_several_tasks_and_clusters():
    one = ItemTable(np.array([[0.4, 0.2], [0.0, 0.2], [0.2, 0.2]]), ("a", "b", "c"), ("x", "x", "y"))
    two = ItemTable(np.array([[-0.1, 0.1], [0.3, 0.3]]), ("d", "e"), ("d", "e"))
    effect = {seed: float(one.values[:, seed].mean() + two.values[:, seed].mean()) for seed in (0, 1)}
    table = crossed_table(Estimate(effect, {"one": one, "two": two}))
    assert table is not None
    assert table.shape == (2, 4)
    assert table.mean(axis=1) == pytest.approx(list(effect.values()))
    # What sets tasks apart is no chance: both blocks have the effect's mean.
    assert table[:, :2].mean() == pytest.approx(table[:, 2:].mean())


def test_a_plan_is_what_the_statistics_say():
    subject = next(iter(plan_from_priors([(LEARNED, "")], 200, {"default": 1})))
    assert isinstance(subject, Planning)
    plan = plan_claim(subject, 3, 3, 1)
    assert plan.detectable == pytest.approx(100 * detectable_difference(subject.components, Design(3, 200)))
    assert not plan.resolved
    assert "cannot be resolved" in plan.sentence
    large = plan_claim(subject, 1.01 * plan.detectable, 3, 1)
    assert large.resolved
    assert large.sentence == ""


def test_looks_ask_for_no_fewer_seeds():
    subject = next(iter(plan_from_priors([(LEARNED, "")], 200, {"default": 1})))
    assert isinstance(subject, Planning)
    plain, looked = plan_claim(subject, 10, 10, 1), plan_claim(subject, 10, 10, 1, looks=[5, 10])
    assert looked.power <= plain.power
    assert looked.power == pytest.approx(plain.power, abs=0.02)


def test_the_command_names_what_is_not_resolved_and_fits_80_columns(pilot: Path, tmp_path: Path):
    claims = {"title": "t", "source": "s", "claims": [LEARNED.model_dump(exclude_unset=True)]}
    file = write_yaml(tmp_path / "claims.yaml", claims)
    arguments = ["plan", "tiny", "--effect", "0.5", "--claims", str(file), "--pilot", str(pilot), "--hours", "50"]
    done = CliRunner().invoke(
        app, [*arguments, "--looks", "3,5,10", "--out", str(tmp_path / "out")], env={"COLUMNS": "80"}
    )
    assert done.exit_code == 0, done.output
    assert "cannot be resolved" in done.output
    assert "10 seeds (4." in done.output.replace("\n", " ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in ("plan.csv", "plan_curve.csv", "plan.png", "plan.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    table = pd.read_csv(tmp_path / "out" / "plan.csv")
    assert table.loc[0, "pilot_seeds"] == 8
    assert float(str(table.loc[0, "power"])) < 0.8


def test_without_a_pilot_the_variances_are_called_priors():
    done = CliRunner().invoke(app, ["plan", "tiny", "--claims", "aopd"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "prior, not this suite" in done.output
    assert "no prior for" in done.output


def test_a_pilot_of_one_seed_says_that_it_needs_two(tmp_path: Path):
    for adapter in ("opd", "aopd"):
        write_run(tmp_path, adapter, 0)
    (found,) = planned([LEARNED], tmp_path)
    assert isinstance(found, NoPlan)
    assert "at least 2 seeds" in found.reason


def test_a_pilot_without_a_method_names_it(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path, "opd", seed)
    (found,) = planned([LEARNED], tmp_path)
    assert isinstance(found, NoPlan)
    assert "no runs of aopd" in found.reason


def test_two_methods_are_compared_where_no_claims_are_given():
    assert compare_two(["opd", "aopd", "sft"])[0].parsed.adapters == ["aopd", "opd"]
    with pytest.raises(ConfigError, match="compares two methods"):
        compare_two(["opd"])


@pytest.mark.parametrize("looks", ["5,3", "1,5", "a"])
def test_looks_that_do_not_increase_are_refused(looks: str):
    done = CliRunner().invoke(app, ["plan", "tiny", "--looks", looks])
    assert isinstance(done.exception, ConfigError)


def test_the_dry_run_says_what_the_seeds_can_find(micro_file: Path):
    done = CliRunner().invoke(app, ["sweep", str(micro_file), "--adapter", "opd,aopd", "--seed", "0,1,2", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "cannot be resolved" in done.output.replace("\n", " ")
