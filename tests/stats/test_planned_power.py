"""The planned power is the power that studies have, by the product's own interval and verdict, and by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from harness.stats.claim_verdicts import EQUIVALENT, SUPPORTED, judge
from harness.stats.design import (
    Components,
    Design,
    detectable_difference,
    equivalence_power,
    fewest_seeds,
    power_of,
    smallest_margin,
)
from harness.stats.estimates import Estimate, ItemTable
from harness.stats.intervals import Interval
from harness.stats.power import MeanSquares
from harness.stats.two_way import two_way_interval
from reports.planning.shipped_priors import read_priors

PRIORS = {
    **read_priors().figures,
    **{
        f"{name}, equal learning": each
        for name, each in read_priors().equal_learning.figures.items()
        if "," not in name
    },
}


def simulate(components: Components, design: Design, studies: int, seed: int) -> list[Interval]:
    """Return the product's interval in studies of two equal methods, whose differences are drawn from a crossed model."""
    draw, S, C = np.random.default_rng(seed).normal, design.seeds, design.clusters
    tables = draw(0, math.sqrt(components.interaction + components.answers / design.answers), (studies, C, S))
    tables += draw(0, math.sqrt(components.seeds), (studies, 1, S))
    tables += draw(0, math.sqrt(components.clusters), (studies, C, 1))
    names = tuple(map(str, range(C)))
    return [
        two_way_interval(
            Estimate(dict(enumerate(table.mean(axis=0).tolist())), {"task": ItemTable(table, names, names)})
        )
        for table in tables
    ]


def check_power(components: Components, design: Design, studies: int, within: float) -> None:
    """Compare planned and real power at the sizes with a planned power of 80 %, and planned and real false alarms."""
    effect, margin = detectable_difference(components, design), smallest_margin(components, design)
    assert power_of(effect, components, design) == pytest.approx(0.8, abs=1e-3)
    assert equivalence_power(margin, components, design) == pytest.approx(0.8, abs=1e-3)
    equal = simulate(components, design, studies, design.seeds)
    assert np.mean([judge(each.beyond(-effect)) == SUPPORTED for each in equal]) == pytest.approx(0.8, abs=within)
    assert np.mean([judge(each, margin=margin) == EQUIVALENT for each in equal]) == pytest.approx(0.8, abs=within)
    false = np.mean([judge(each) != "not resolved" for each in equal])
    assert false == pytest.approx(power_of(0.0, components, design), abs=within / 2)
    assert false < 0.065


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_planned_power_is_that_of_the_verdicts(seeds: int):
    check_power(PRIORS["probe_change"].components(1), Design(seeds, 80), 1000, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("figure", list(PRIORS))
def test_planned_power_is_that_of_the_verdicts_for_every_prior(figure: str, seeds: int):
    """2,000 studies each; the standard error of 80 % is 0.9 points, that of 5 % is 0.5."""
    answers = 4 if figure in ("learned", "probe_change") else 1
    check_power(PRIORS[figure].components(answers), Design(seeds, PRIORS[figure].clusters, answers), 2000, 0.03)


@pytest.mark.parametrize(("seeds", "most"), [(3, 0.0535), (4, 0.0505), (5, 0.0505), (10, 0.0505), (20, 0.0505)])
def test_a_test_at_5_percent_errs_in_hardly_more_than_5_percent_wherever_methods_vary(seeds: int, most: float):
    """The exact error, by quadrature, over what a residual of 1 leaves for seeds and for clusters."""
    squares = [
        MeanSquares(1 + of_seeds, 1 + of_clusters, 1, seeds, clusters)
        for of_seeds in (0, 0.3, 1, 3, 10, 30, 100, 1000)
        for of_clusters in (0, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
        for clusters in (20, 60, 200)
    ]
    assert max(each.finds(0, 0.05) for each in squares) <= most


@pytest.mark.parametrize("seeds", [3, 5, 10, 30])
@pytest.mark.parametrize("size", [0.02, 0.05, 0.12])
def test_equivalence_where_seeds_alone_vary_is_the_integral_over_their_variance(seeds: int, size: float):
    """Phillips 1990, J. Pharmacokinet. Biopharm. 18, with the condition that the two-sided test finds no difference."""
    components, error, df = Components(0.04**2, 0.0, 0.0), 0.04 / math.sqrt(seeds), seeds - 1
    one_sided, two_sided = (float(stats.t.ppf(share, df)) for share in (0.95, 0.975))

    def of_variance(x: float) -> float:
        estimated = error * math.sqrt(x / df)
        bound = max(0.0, min(size - one_sided * estimated, two_sided * estimated))
        return float(stats.chi2.pdf(x, df) * (1 - 2 * stats.norm.sf(bound / error)))

    bend = df * (size / (error * (one_sided + two_sided))) ** 2  # where the smaller bound changes
    end = df * (size / (error * one_sided)) ** 2
    expected = sum(integrate.quad(of_variance, *limits)[0] for limits in ((0, min(bend, 200)), (bend, min(end, 300))))
    assert equivalence_power(size, components, Design(seeds, 2)) == pytest.approx(expected, abs=2e-3)


def test_with_many_seeds_equivalence_is_that_of_the_normal_distribution():
    components, design = Components(0.05**2, 0.1**2, 0.4**2), Design(1000, 2000)
    error = math.sqrt(components.of_mean(design))
    expected = 2 * stats.norm.cdf(2.9 - stats.norm.ppf(0.95)) - 1
    assert equivalence_power(2.9 * error, components, design) == pytest.approx(expected, abs=5e-3)


def test_an_effect_outside_the_margin_is_called_equivalent_in_at_most_5_percent():
    components = PRIORS["probe_change"].components(1)
    for seeds in (3, 5, 10):
        assert equivalence_power(0.02, components, Design(seeds, 400), effect=0.02) <= 0.05
        assert equivalence_power(0.02, components, Design(seeds, 400), effect=-0.02) <= 0.05


def test_a_margin_below_what_items_leave_open_has_no_number_of_seeds():
    # 20 clusters leave a standard error of at least 0.12 / sqrt(20) = 2.7 points, with any number of seeds.
    few, many = Components(0.02**2, 0.12**2, 0.2**2), 2000
    assert fewest_seeds(lambda seeds: equivalence_power(0.02, few, Design(seeds, 20))) is None
    found = fewest_seeds(lambda seeds: equivalence_power(0.02, few, Design(seeds, many)))
    assert found is not None
    powers = [equivalence_power(0.02, few, Design(seeds, many)) for seeds in (found - 1, found)]
    assert powers[0] < 0.8 <= powers[1]


def test_fewer_than_three_seeds_get_no_verdict_and_have_no_power():
    components = Components(0.01**2, 0.01**2, 0.01**2)
    assert power_of(0.5, components, Design(2, 100)) == equivalence_power(0.5, components, Design(2, 100)) == 0
    assert fewest_seeds(lambda seeds: power_of(0.5, components, Design(seeds, 100))) == 3
