"""Planning: components recovered, the fewest seeds, the cheapest designs, and looks that keep the error rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from harness.stats.design import (
    Components,
    Costs,
    Design,
    cheapest_designs,
    estimate_components,
    fewest_seeds,
    power_of,
    seed_variance_limits,
)

# About what two methods show on one task of the tiny suite: 2.5 points between seeds, 12 of a call, 20 of a call in a seed.
PILOT = Components(seeds=0.025**2, clusters=0.12**2, interaction=0.20**2, answers=0.15)


def simulated(
    generator: np.random.Generator, components: Components, design: Design, effect: float, studies: int
) -> np.ndarray:
    """Return differences (studies, seeds, clusters), each the mean over the design's answers."""
    shape = (studies, design.seeds, design.clusters)
    seeds = generator.normal(0, math.sqrt(components.seeds), (studies, design.seeds, 1))
    clusters = generator.normal(0, math.sqrt(components.clusters), (studies, 1, design.clusters))
    cell = generator.normal(0, math.sqrt(components.interaction + components.answers / design.answers), shape)
    return effect + seeds + clusters + cell


def test_components_are_recovered_from_a_pilot():
    generator = np.random.default_rng(0)
    true = Components(seeds=0.06**2, clusters=0.12**2, interaction=0.20**2, answers=0.08)
    tables = simulated(generator, true, Design(12, 60, answers=4), 0.03, 400)
    found = [estimate_components(table, true.answers, answers=4) for table in tables]
    for name in ("seeds", "clusters", "interaction", "answers"):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(getattr(true, name), rel=0.08), name


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_variance_between_seeds_lies_within_its_limits_in_four_pilots_of_five(seeds: int):
    """1,000 pilots; standard error of the share: 0.013. Pilots with an estimate of zero all contain it."""
    true, design = Components(seeds=0.06**2, clusters=0.12**2, interaction=0.20**2), Design(seeds, 60)
    inside = 0
    for table in simulated(np.random.default_rng(seeds), true, design, 0.03, 1000):
        low, high = seed_variance_limits(estimate_components(table), design)
        inside += low.seeds <= true.seeds <= high.seeds
    assert 0.8 - 0.04 <= inside / 1000 <= 0.9 + 0.02


def test_components_by_hand():
    # Two seeds, two clusters: rows 0 and 2, columns 0 and 2, nothing left over.
    assert estimate_components([[-1.0, 1.0], [1.0, 3.0]]) == Components(2.0, 2.0, 0.0, 0.0)
    # Only the interaction: row and column means are all 0; its mean square is 4 / 1.
    assert estimate_components([[1.0, -1.0], [-1.0, 1.0]]) == Components(0.0, 0.0, 4.0, 0.0)


@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [1.0, 2.0]])
def test_a_pilot_too_small_to_tell_is_refused(table: list[object]):
    with pytest.raises(ValueError, match="2 seeds and 2 clusters"):
        estimate_components(table)  # pyright: ignore[reportArgumentType]


def test_variance_and_mean_squares_by_hand():
    components = Components(seeds=0.4, clusters=0.9, interaction=1.2, answers=2.4)
    design = Design(seeds=4, clusters=3, answers=2)
    assert components.of_mean(design) == pytest.approx(0.4 / 4 + 0.9 / 3 + 1.2 / 12 + 2.4 / 24)
    # Rest 1.2 + 1.2 = 2.4, seeds 3 * 0.4 + 2.4 = 3.6, clusters 4 * 0.9 + 2.4 = 6.
    squares = components.mean_squares(design)
    assert squares[:3] == pytest.approx((3.6, 6.0, 2.4))
    assert squares.error == pytest.approx(math.sqrt(components.of_mean(design)))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_power_is_that_of_a_paired_t_test_where_seeds_alone_vary(seeds: int):
    components = Components(seeds=0.04**2, clusters=0.0, interaction=0.0)
    expected = TTestPower().power(1.25, seeds, 0.05)
    assert power_of(0.05, components, Design(seeds, 100)) == pytest.approx(expected, abs=1e-4)


def seeds_for(effect: float, clusters: int, answers: int) -> int | None:
    return fewest_seeds(lambda seeds: power_of(effect, PILOT, Design(seeds, clusters, answers)))


def test_the_fewest_seeds_are_the_fewest():
    seeds = seeds_for(0.06, 160, 4)
    assert seeds is not None
    assert power_of(0.06, PILOT, Design(seeds, 160, 4)) >= 0.8 > power_of(0.06, PILOT, Design(seeds - 1, 160, 4))


def test_an_effect_that_these_items_cannot_show_has_no_number_of_seeds():
    # 20 clusters leave a standard error of at least 0.12 / sqrt(20) = 2.7 points, with any number of seeds.
    assert seeds_for(0.03, 20, 4) is None
    assert seeds_for(0.03, 2000, 4) is not None


def test_the_cheapest_design_costs_no_more_than_any_other():
    costs = Costs(training=0.05, answer=1e-5)
    designs = cheapest_designs(
        lambda design: power_of(0.06, PILOT, design), costs, clusters=(50, 100, 200, 400), answers=(1, 2, 4, 8)
    )
    assert designs
    assert designs[0].hours == min(planned.hours for planned in designs)
    for planned in designs:
        assert planned.power >= 0.8
        assert planned.hours == pytest.approx(costs.hours(planned.design))
    two = Design(seeds=3, clusters=100, answers=4)
    assert costs.hours(two) == pytest.approx(3 * 2 * (0.05 + 400 * 1e-5))
