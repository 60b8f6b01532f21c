"""Plans before runs: variances recovered from written runs, what a suite cannot resolve, looks, priors named as such."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness.cli.app import app
from harness.config.load import load_suite
from harness.config.run_spec import plan_runs
from harness.errors import ConfigError
from harness.pipeline.sweeps.study_runs import plan_study
from harness.rundir.files import read_results, write_cell
from harness.stats.claim_verdicts import SUPPORTED, judge
from harness.stats.design import Components, Design, detectable_difference, equivalence_power, smallest_margin
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import t_interval
from harness.stats.learning.rates import ChosenRate, choose_rates, largest_widening, widening
from reports.claims.claim_file import ClaimEntry, read_claims
from reports.data.methods import find_methods
from reports.planning.pilot import NoPlan, PlanningBasis, crossed_table, plan_from_pilot
from reports.planning.planned_runs import PlannedRuns
from reports.planning.power_plan import plan_all, plan_claim, power_curve_of
from reports.planning.shipped_priors import plan_from_priors, read_priors
from reports.planning.show_plan import print_power_plan
from reports.study.study_plan import planned_runs_of
from reports.terminal.plan_command import compare_two
from tests.support.models import write_yaml
from tests.support.reports.run_factory import write_run
from tests.support.reports.study_factory import study

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


def planned(claims: list[ClaimEntry], folder: Path) -> list[PlanningBasis | NoPlan]:
    return list(plan_from_pilot([(claim, "") for claim in claims], find_methods([folder], least=1), runs_of()))


def runs_of(*settings: str, **changes: object) -> PlannedRuns:
    """Return the planned runs of the tiny suite, all its adapters and seeds."""
    suite = load_suite("tiny", settings).model_copy(update=changes)
    return PlannedRuns(suite, plan_runs(suite, list(suite.adapters), suite.seeds, "default", Path("runs")))


def from_priors(claim: ClaimEntry, runs: PlannedRuns | None = None, profile: str = "") -> PlanningBasis | NoPlan:
    (found,) = plan_from_priors([(claim, profile)], runs or runs_of())
    return found


def test_the_components_are_recovered_from_run_directories(pilot: Path):
    (found,) = planned([LEARNED], pilot)
    assert isinstance(found, PlanningBasis)
    assert found.design == Design(8, ITEMS, ANSWERS)
    for part in ("clusters", "interaction", "answers"):
        assert getattr(found.components, part) == pytest.approx(getattr(TRUE, part), rel=0.35), part
    assert 0.2 * TRUE.seeds < found.components.seeds < 4 * TRUE.seeds  # eight seeds say little more


def test_costs_are_those_of_the_pilot_s_runs(pilot: Path):
    (found,) = planned([LEARNED], pilot)
    assert isinstance(found, PlanningBasis)
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
    subject = from_priors(LEARNED)
    assert isinstance(subject, PlanningBasis)
    plan = plan_claim(subject, 3, 3, 1)
    smallest = 100 * detectable_difference(subject.components, Design(3, 200))
    assert plan.difference.smallest == pytest.approx(smallest)
    assert not plan.difference.resolved
    assert plan.equivalence is None
    assert "cannot be resolved" in plan.sentence
    large = plan_claim(subject, 1.01 * smallest, 3, 1)
    assert large.difference.resolved
    assert large.sentence == ""


def test_a_claim_with_a_margin_says_how_many_seeds_show_that_nothing_differs():
    with_margin = LEARNED.model_copy(update={"margin": 4.0})
    subject = from_priors(with_margin)
    assert isinstance(subject, PlanningBasis)
    found = plan_claim(subject, 3, 3, 1).equivalence
    assert found is not None
    parts = subject.components
    assert found.power == pytest.approx(equivalence_power(0.04, parts, Design(3, 200)))
    assert found.any_cost is not None
    assert found.any_cost.power >= 0.8
    assert equivalence_power(0.04, parts, found.any_cost.design) == pytest.approx(found.any_cost.power)
    assert found.own_items is not None
    assert equivalence_power(0.04, parts, Design(found.own_items, 200)) >= 0.8
    sentence = plan_claim(subject, 3, 3, 1).sentence
    assert f"{found.any_cost.design.seeds} seeds on {found.any_cost.design.clusters} items" in sentence
    # What three seeds show needs no sentence.
    wide = replace(subject, margin=1.01 * found.smallest)
    assert "equal" not in plan_claim(wide, 3, 3, 1).sentence
    assert plan_claim(wide, 99, 3, 1).sentence == ""
    assert "where the methods are equal" in plan_claim(subject, 99, 3, 1).sentence


def test_the_number_of_seeds_is_as_sure_as_the_pilot_is_large():
    subject = from_priors(LEARNED)
    assert isinstance(subject, PlanningBasis)
    found = [
        plan_claim(replace(subject, design=replace(subject.design, seeds=seeds)), 10, 3, 1).difference
        for seeds in (5, 20, 200)
    ]
    ranges: list[tuple[int, int]] = []
    for each in found:
        fewest, most = each.seeds_between
        assert each.any_cost is not None
        assert fewest is not None
        assert most is not None
        assert fewest <= each.any_cost.design.seeds <= most
        ranges.append((fewest, most))
    assert ranges[0][0] < ranges[1][0] < ranges[2][0] < ranges[2][1] < ranges[1][1] < ranges[0][1]
    assert len({each.any_cost.design.seeds for each in found if each.any_cost}) == 1


def test_looks_ask_for_no_fewer_seeds():
    subject = from_priors(LEARNED)
    assert isinstance(subject, PlanningBasis)
    plain, looked = (plan_claim(subject, 10, 10, 1, looks=looks).difference for looks in ([], [5, 10]))
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


@pytest.mark.slow
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


def test_a_claim_is_planned_against_its_smallest_effect():
    """A difference of 5 points over a smallest effect of 3 takes as much as one of 2 over none; 3 points show nothing."""
    subject = from_priors(LEARNED)
    assert isinstance(subject, PlanningBasis)
    demanding = replace(subject, smallest_effect=3.0)
    plain, above = (plan_claim(each, size, 5, 1).difference for each, size in ((subject, 2.0), (demanding, 5.0)))
    assert above.power == plain.power
    assert above.smallest == pytest.approx(plain.smallest + 3)
    assert above.any_cost == plain.any_cost
    nothing = plan_claim(demanding, 3.0, 5, 1)
    assert (nothing.difference.power, nothing.difference.any_cost) == (0, None)
    assert re.search(r"never .*difference is 3\b", nothing.sentence)


def claim(name: str) -> tuple[ClaimEntry, str]:
    """Return a shipped claim and its profile."""
    file = read_claims("aopd")
    entry = next(each for each in file.claims if each.name == name)
    return entry, file.profile_of(entry)


KEPT = ClaimEntry.model_validate(
    {
        "name": "keeps", "text": "AOPD keeps more", "unit": "points", "smallest_effect": 0, "margin": 2,
        "expression": "metric(aopd, probe_change) > metric(opd, probe_change)", "at": "equal_learning",
    }
)  # fmt: skip


def test_a_claim_that_the_suite_cannot_test_is_not_planned_and_says_what_to_set():
    reasons = {}
    for name, (entry, profile) in {
        "curves": (KEPT, ""),
        "rate": claim("ends"),
        "profile": (LEARNED, "sampled"),
        "adapter": (LEARNED.model_copy(update={"expression": "metric(none_such, learned) > metric(opd, learned)"}), ""),
        "start": claim("larger-gain-from-weaker-start"),
    }.items():
        found = from_priors(ClaimEntry.model_validate(entry.model_dump()), profile=profile)
        assert isinstance(found, NoPlan)
        assert not found.judged
        reasons[name] = found.reason
    assert "set evaluation.every" in reasons["curves"]
    assert "one learning rate of aopd" in reasons["rate"]
    assert "no evaluation under profile sampled" in reasons["profile"]
    assert "no runs of none_such" in reasons["adapter"]
    assert "weak" in reasons["start"]


def test_equal_learning_has_its_own_priors_by_stage_and_counts_the_items_of_curves():
    runs = runs_of("evaluation.every=10", "evaluation.curve_items=50")
    at_end, second = KEPT.model_copy(update={"at": "end"}), KEPT.scope.model_copy(update={"stage": 2})
    whole, of_second, ends = (
        from_priors(each, runs) for each in (KEPT, KEPT.model_copy(update={"scope": second}), at_end)
    )
    assert isinstance(whole, PlanningBasis)
    assert isinstance(of_second, PlanningBasis)
    assert isinstance(ends, PlanningBasis)
    assert len({whole.components, of_second.components, ends.components}) == 3
    priors = read_priors().equal_learning
    assert whole.design.clusters == priors.figures["probe_change"].clusters * 50 // priors.items
    first = KEPT.model_copy(update={"scope": KEPT.scope.model_copy(update={"stage": 1})})
    unknown = from_priors(first, runs)
    assert isinstance(unknown, NoPlan)
    assert unknown.judged


def test_a_score_in_the_middle_of_a_run_has_not_the_prior_of_its_end():
    found = from_priors(LEARNED.model_copy(update={"scope": LEARNED.scope.model_copy(update={"stage": 1})}))
    assert isinstance(found, NoPlan)
    assert "no prior" in found.reason


def test_a_claim_at_the_best_rate_pays_for_the_runs_at_all_rates():
    runs, (entry, profile) = planned_runs_of(plan_study("tiny")), claim("ends")
    best = from_priors(entry, runs, profile)
    own = from_priors(claim("ends-own-rate")[0], runs, profile)
    assert isinstance(best, PlanningBasis)
    assert isinstance(own, PlanningBasis)
    assert best.costs.methods == 4 * own.costs.methods == 8  # four learning rates of two methods
    assert best.seeds == own.seeds == 3


def test_a_claim_at_the_best_rate_is_planned_with_the_widest_interval_of_the_judge():
    """With three seeds, where the halves chose different rates, the judge's interval is 1.51207 times as wide."""
    entry, profile = claim("ends")
    subject = from_priors(entry.model_copy(update={"margin": 4.0}), planned_runs_of(plan_study("tiny")), profile)
    assert isinstance(subject, PlanningBasis)
    parts, design = subject.components, Design(3, subject.design.clusters)
    plan = plan_claim(replace(subject, smallest_effect=1.0), 0, 3, 1)
    smallest = 1 + 1.51207 * 100 * detectable_difference(parts, design)
    assert plan.difference.smallest == pytest.approx(smallest, rel=1e-4)
    assert power_curve_of(plan, math.inf)[0][1] == pytest.approx(smallest, rel=1e-4)
    wider = widening([{seed: ChosenRate(rate, 0.5) for seed, rate in enumerate([1e-4, 2e-4] * 5)}])
    expected = 1 + wider * 100 * detectable_difference(parts, replace(design, seeds=10))
    assert plan.difference.by_seeds[10] == pytest.approx(expected)
    assert plan.equivalence is not None
    assert plan.equivalence.smallest == pytest.approx(1.51207 * 100 * smallest_margin(parts, design), rel=1e-4)
    assert plan.equivalence.power == pytest.approx(equivalence_power(0.04 / 1.51207, parts, design), abs=1e-5)
    fewest = plan.equivalence.own_items
    assert fewest is not None
    found = [
        equivalence_power(0.04 / largest_widening(seeds), parts, replace(design, seeds=seeds))
        for seeds in (fewest - 1, fewest)
    ]
    assert found[0] < 0.8 <= found[1]


def test_the_printed_plan_says_what_it_assumes_of_the_best_rate():
    runs, texts = planned_runs_of(plan_study("tiny")), []
    for name in ("ends", "ends-own-rate"):
        console = Console(file=StringIO(), width=80)
        print_power_plan(console, plan_all([from_priors(claim(name)[0], runs)], 0), math.inf, [])
        assert isinstance(console.file, StringIO)
        texts.append(console.file.getvalue().replace("\n", " "))
    assert re.search(r"\(ends\): .* different rates.* 1\.51 times with 3 seeds", texts[0])
    assert "different rates" not in texts[1]


def test_a_pilot_s_claim_at_the_best_rate_is_widened_too(tmp_path: Path):
    for seed in range(3):
        for adapter, end in (("opd", 0.3), ("aopd", 0.4)):
            scores = [[0.5, 0.1, 0.6], [0.8, 0.2, 0.5], [end + 0.1 * (seed == 1), 0.9, 0.4]]
            write_run(tmp_path, adapter, seed, scores, stages=("tiny_arithmetic", "tiny_weather"))
    runs, methods = planned_runs_of(plan_study("tiny")), find_methods([tmp_path])
    best, own = plan_from_pilot([(claim(name)[0], "") for name in ("ends", "ends-own-rate")], methods, runs)
    assert isinstance(best, PlanningBasis)
    assert isinstance(own, PlanningBasis)
    assert (best.widening(3), own.widening(3)) == (pytest.approx(1.51207, rel=1e-4), 1.0)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_judge_has_at_least_the_planned_power_at_the_best_rate(seeds: int):
    """Two rates are equally good and share nothing, which is the worst case of decision 19; 2,000 studies."""
    basis = from_priors(claim("ends")[0], planned_runs_of(plan_study("tiny")), claim("ends")[1])
    assert isinstance(basis, PlanningBasis)
    basis = replace(basis, components=Components(0.04**2, 0.0, 0.0), design=Design(seeds, 2), smallest_effect=0.0)
    effect = plan_claim(basis, 3, seeds, 1).difference.smallest / basis.scale
    found = []
    for draws in np.random.default_rng(seeds).normal(0, 0.04 / math.sqrt(2), (2000, 2, seeds)):
        sides = [choose_rates({1.0: dict(enumerate(each)), 2.0: dict(enumerate(-each))}) for each in draws]
        base, other = (np.array([each.value for each in side.values()]) for side in sides)
        found.append(judge(t_interval(other + effect - base).widened(widening(sides))) == SUPPORTED)
    assert np.mean(found) >= 0.8


def test_a_claim_at_the_best_rate_counts_the_seeds_that_all_rates_have(tmp_path: Path):
    entry, profile = claim("ends")
    found = []
    for seeds in ([0, 1], [0, 1, 2, 3]):
        rates = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4], "seeds": seeds}
        method = {"title": "Method", "entries": ["opd", "aopd"]}
        plan = study(tmp_path / str(len(seeds)), {"method": method, "rate": rates}, seeds=range(10))
        found.append(from_priors(entry, planned_runs_of(plan), profile))
    few, enough = found
    assert isinstance(few, NoPlan)
    assert not few.judged
    assert "2 seeds with runs at all learning rates" in few.reason
    assert isinstance(enough, PlanningBasis)
    assert enough.seeds == 4


@pytest.mark.parametrize("command", [["study", "verdicts"], ["sweep", "tiny", "--adapter", "opd,aopd"]])
@pytest.mark.slow
def test_a_dry_run_names_the_claims_that_its_runs_cannot_test_or_resolve(command: list[str], tmp_path: Path):
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--dry-run"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    shown = done.output.replace("\n", " ")
    assert "learns cannot be resolved" in shown
    assert "ends cannot be judged: one learning rate" in shown
    assert "retains cannot be " in shown


def test_a_claim_from_a_common_checkpoint_is_planned_on_the_runs_that_begin_at_one():
    (entry, profile), without = claim("retains"), runs_of("evaluation.every=5")
    missing = from_priors(entry, without, profile)
    assert isinstance(missing, NoPlan)
    assert "begin a stage at a trained checkpoint" in missing.reason
    fixed = {"task": "tiny_arithmetic", "adapter": "opd", "training": {"steps": 120}}
    settings = {"stages": [fixed, "tiny_weather"], "orders": {}, "evaluation.every": 5, "evaluation.curve_items": 50}
    branch = load_suite("tiny", settings={**settings, "evaluation.curve_profile": "paper"})
    branches = plan_runs(branch, ["opd", "aopd"], [0, 1, 2, 3], "default", Path("runs"))
    found = from_priors(entry, replace(without, branches=branches), profile)
    assert isinstance(found, PlanningBasis)
    assert (found.seeds, found.design.clusters, found.margin) == (4, 150, 2)
    assert found.components == read_priors().from_checkpoint.figures["kept"].components(1)
    other = load_suite("tiny", settings=settings)
    greedy = replace(without, branches=plan_runs(other, ["opd", "aopd"], [0], "default", Path("runs")))
    drawn = from_priors(entry, greedy, profile)
    assert isinstance(drawn, NoPlan)
    assert "set evaluation.curve_profile" in drawn.reason


def test_a_study_of_another_suite_is_refused():
    done = CliRunner().invoke(app, ["plan", "gsm8k-toolalpaca-smoke", "--study", "verdicts"])
    assert isinstance(done.exception, ConfigError)
    assert "is of suite tiny" in str(done.exception)
