"""Planning: components recovered, planned power equal to simulated power, and looks that keep the error rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from harness.stats.design import (
    Components,
    Costs,
    Design,
    cheapest_designs,
    detectable_difference,
    estimate_components,
    power_of,
    seeds_for,
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


def p_values(tables: np.ndarray) -> np.ndarray:
    """Return the p values of the t test on the mean squares of crossed tables, Satterthwaite's degrees of freedom."""
    _, S, C = tables.shape
    mean = tables.mean((1, 2))
    rows, columns = tables.mean(2), tables.mean(1)
    rest = tables - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    of_rest = (rest**2).sum((1, 2)) / ((S - 1) * (C - 1))
    of_rows, of_columns = C * rows.var(1, ddof=1), S * columns.var(1, ddof=1)
    total = np.maximum(of_rows + of_columns - of_rest, np.maximum(of_rows, of_columns) / 2)
    spread = of_rows**2 / (S - 1) + of_columns**2 / (C - 1) + of_rest**2 / ((S - 1) * (C - 1))
    return 2 * stats.t.sf(np.abs(mean) / np.sqrt(total / (S * C)), total**2 / spread)


def test_components_are_recovered_from_a_pilot():
    generator = np.random.default_rng(0)
    true = Components(seeds=0.06**2, clusters=0.12**2, interaction=0.20**2, answers=0.08)
    tables = simulated(generator, true, Design(12, 60, answers=4), 0.03, 400)
    found = [estimate_components(table, true.answers, answers=4) for table in tables]
    for name in ("seeds", "clusters", "interaction", "answers"):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(getattr(true, name), rel=0.08), name


def test_components_by_hand():
    # Two seeds, two clusters: rows 0 and 2, columns 0 and 2, nothing left over.
    assert estimate_components([[-1.0, 1.0], [1.0, 3.0]]) == Components(2.0, 2.0, 0.0, 0.0)
    # Only the interaction: row and column means are all 0; its mean square is 4 / 1.
    assert estimate_components([[1.0, -1.0], [-1.0, 1.0]]) == Components(0.0, 0.0, 4.0, 0.0)


@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [1.0, 2.0]])
def test_a_pilot_too_small_to_tell_is_refused(table: list[object]):
    with pytest.raises(ValueError, match="expected at least 2 seeds and 2 clusters"):
        estimate_components(table)  # pyright: ignore[reportArgumentType]


def test_variance_and_degrees_of_freedom_by_hand():
    components = Components(seeds=0.4, clusters=0.9, interaction=1.2, answers=2.4)
    design = Design(seeds=4, clusters=3, answers=2)
    assert components.of_mean(design) == pytest.approx(0.4 / 4 + 0.9 / 3 + 1.2 / 12 + 2.4 / 24)
    # Mean squares: rest 1.2 + 1.2 = 2.4, seeds 3 * 0.4 + 2.4 = 3.6, clusters 4 * 0.9 + 2.4 = 6.
    expected = (3.6 + 6 - 2.4) ** 2 / (3.6**2 / 3 + 6**2 / 2 + 2.4**2 / 6)
    assert components.degrees_of_freedom(design) == pytest.approx(expected)
    assert components.degrees_of_freedom(Design(1, 3)) == 0


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_power_is_that_of_a_paired_t_test_where_seeds_alone_vary(seeds: int):
    components = Components(seeds=0.04**2, clusters=0.0, interaction=0.0)
    expected = TTestPower().power(1.25, seeds, 0.05)
    assert power_of(0.05, components, Design(seeds, 100)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("seeds", "clusters", "answers"), [(3, 160, 1), (5, 150, 4), (10, 60, 4), (10, 160, 1)])
def test_planned_power_is_the_power_that_studies_have(seeds: int, clusters: int, answers: int):
    design = Design(seeds, clusters, answers)
    effect = detectable_difference(PILOT, design)
    assert power_of(effect, PILOT, design) == pytest.approx(0.8, abs=1e-3)
    found = p_values(simulated(np.random.default_rng(1), PILOT, design, effect, 2000)) < 0.05
    # With three seeds the degrees of freedom themselves are a guess, and the plan is a little optimistic.
    assert np.mean(found) == pytest.approx(0.8, abs=0.03 if seeds > 3 else 0.04)
    false = p_values(simulated(np.random.default_rng(2), PILOT, design, 0.0, 2000)) < 0.05
    assert np.mean(false) < 0.065


def test_the_fewest_seeds_are_the_fewest():
    seeds = seeds_for(0.06, PILOT, 160, 4)
    assert seeds is not None
    assert power_of(0.06, PILOT, Design(seeds, 160, 4)) >= 0.8 > power_of(0.06, PILOT, Design(seeds - 1, 160, 4))


def test_an_effect_that_these_items_cannot_show_has_no_number_of_seeds():
    # 20 clusters leave a standard error of at least 0.12 / sqrt(20) = 2.7 points, with any number of seeds.
    assert seeds_for(0.03, PILOT, 20, 4) is None
    assert seeds_for(0.03, PILOT, 2000, 4) is not None


def test_the_cheapest_design_costs_no_more_than_any_other():
    costs = Costs(training=0.05, answer=1e-5)
    designs = cheapest_designs(0.06, PILOT, costs, clusters=(50, 100, 200, 400), answers=(1, 2, 4, 8))
    assert designs
    assert designs[0].hours == min(planned.hours for planned in designs)
    for planned in designs:
        assert planned.power >= 0.8
        assert planned.hours == pytest.approx(costs.hours(planned.design))
    two = Design(seeds=3, clusters=100, answers=4)
    assert costs.hours(two) == pytest.approx(3 * 2 * (0.05 + 400 * 1e-5))
