"""The figures equal what one computes by hand, and obey the identities that follow from their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.errors import ConfigError
from harness.stats.continual import FIGURES, compute_figures, register_figure
from harness.stats.score_matrix import ScoreMatrix

# Three stages and one probe. Rows: start, after a, after b, after c.
#          a     b     c     probe
ROWS = [
    [0.50, 0.10, 0.20, 0.60],
    [0.40, 0.30, 0.10, 0.50],
    [0.45, 0.90, 0.00, 0.70],
    [0.20, 0.60, 0.80, 0.30],
]
GOLDEN = {
    # R[0]: (0.5 + 0.1 + 0.2) / 3
    "start_accuracy": 0.8 / 3,
    # R[T]: (0.2 + 0.6 + 0.8) / 3
    "average_accuracy": 1.6 / 3,
    # diagonal: (0.4 + 0.9 + 0.8) / 3
    "learning_accuracy": 2.1 / 3,
    # (0.4-0.5) + (0.9-0.3) + (0.8-0.0) = 1.3
    "plasticity": 1.3 / 3,
    # (0.2-0.4) + (0.6-0.9) = -0.5
    "backward_transfer": -0.25,
    # a: max(0.4, 0.45) - 0.2 = 0.25; b: max(0.3, 0.9) - 0.6 = 0.3
    "forgetting_chaudhry": 0.275,
    # a: max(0.5, 0.4, 0.45) - 0.2 = 0.3; b: 0.9 - 0.6 = 0.3
    "forgetting_from_start": 0.3,
    "forgetting_avalanche": 0.25,
    # a: 0.2/0.4 = 1/2; b: 0.6/0.9 = 2/3
    "retention_ratio": 7 / 12,
    # 0.4; (0.45+0.9)/2 = 0.675; 1.6/3
    "average_incremental_accuracy": (0.4 + 0.675 + 1.6 / 3) / 3,
    # b: 0.3-0.1 = 0.2; c: 0.0-0.2 = -0.2
    "forward_transfer": 0.0,
    # (0.5-0.4) + (1.0-0.9) + (0.9-0.8) = 0.3
    "intransigence": 0.1,
    # 0.3 - 0.6
    "probe_change": -0.3,
    # max(0.6, 0.5, 0.7) - 0.3
    "probe_forgetting": 0.4,
}


def matrix(rows=ROWS, trained=("a", "b", "c"), probes=("p",), joint=(0.5, 1.0, 0.9)) -> ScoreMatrix:
    return ScoreMatrix(np.array(rows), trained, probes, joint=None if joint is None else np.array(joint))


@pytest.mark.pitfall(
    "forgetting has several definitions under one name",
    area="Grading",
    guard="`harness/stats/continual.py` has each definition under its own name with its source",
    evidence="Avalanche's definition is computed as Chaudhry's",
)
@pytest.mark.pitfall(
    "Chaudhry's maximum begins after the first stage, other papers' maximum at the start",
    area="Grading",
    guard="`harness/stats/continual.py` keeps the two apart",
    evidence="the maximum is taken from the start",
)
@pytest.mark.parametrize("name", GOLDEN)
def test_a_figure_equals_the_hand_computation(name: str):
    assert compute_figures(matrix())[name] == pytest.approx(GOLDEN[name])


def test_a_stage_with_its_own_adapter_is_not_the_methods_learning():
    fixed = ScoreMatrix(np.array(ROWS), ("a", "b", "c"), ("p",), fixed=("a",))
    values = compute_figures(fixed)
    assert values["learning_accuracy"] == pytest.approx((0.9 + 0.8) / 2)
    assert values["plasticity"] == pytest.approx((0.6 + 0.8) / 2)
    assert compute_figures(fixed.up_to(2))["learning_accuracy"] == pytest.approx(0.9)
    others = set(values) - {"learning_accuracy", "plasticity", "intransigence"}
    assert {name: values[name] for name in others} == pytest.approx({name: GOLDEN[name] for name in others})


def test_a_task_that_was_trained_before_the_start_is_no_probe_of_a_figure():
    branch = ScoreMatrix(np.array([[0.1, 0.8, 0.6], [0.9, 0.4, 0.5]]), ("b",), ("a", "p"), before=("a",))
    values = compute_figures(branch)
    assert values["probe_change"] == pytest.approx(0.5 - 0.6)
    assert values["probe_forgetting"] == pytest.approx(0.6 - 0.5)
    assert FIGURES["probe_change"].value(branch, "a") == pytest.approx(0.4 - 0.8)
    # c was trained before the start and is trained again in stage 3: up to stage 2 no stage trains p alone.
    again = ScoreMatrix(np.array(ROWS), ("a", "b", "c"), ("p",), before=("c",)).up_to(2)
    assert FIGURES["probe_change"].value(again) == pytest.approx(0.7 - 0.6)


def test_chaudhrys_maximum_is_over_all_stages_before_the_last_also_those_before_a_tasks_own():
    rows = [list(row) for row in ROWS]
    rows[1][1] = 0.95
    # a: 0.45 - 0.2 = 0.25; b: max(0.95, 0.9) - 0.6 = 0.35. The official code has np.max(data[:T, i]) - data[T, i].
    assert FIGURES["forgetting_chaudhry"].value(matrix(rows)) == pytest.approx(0.3)
    rows[0][1] = 1.0
    assert FIGURES["forgetting_chaudhry"].value(matrix(rows)) == pytest.approx(0.3)
    assert FIGURES["forgetting_from_start"].value(matrix(rows)) == pytest.approx((0.3 + 0.4) / 2)


def test_every_registered_figure_has_a_golden_value_and_says_what_it_is():
    assert set(FIGURES) == set(GOLDEN)
    for figure in FIGURES.values():
        assert figure.label
        assert "R" in figure.formula
        assert figure.source


def test_a_figure_of_one_task_is_the_same_terms_of_that_task_alone():
    # a: 0.5 - 0.2; b: 0.9 - 0.6; c: max(0.2, 0.1, 0.0) - 0.8; probe: 0.7 - 0.3
    dropped = [FIGURES["forgetting_from_start"].value(matrix(), task) for task in ("a", "b", "c", "p")]
    assert dropped == pytest.approx([0.3, 0.3, -0.6, 0.4])
    assert FIGURES["probe_change"].value(matrix(), "p") == pytest.approx(-0.3)
    assert FIGURES["probe_change"].value(matrix(), "a") == pytest.approx(-0.3)
    # b is trained second, so it is not an earlier task up to stage 2; the last task is never one.
    assert FIGURES["backward_transfer"].value(matrix(), "b") == pytest.approx(-0.3)
    assert math.isnan(FIGURES["backward_transfer"].value(matrix().up_to(2), "b"))
    assert math.isnan(FIGURES["backward_transfer"].value(matrix(), "c"))
    assert math.isnan(FIGURES["learning_accuracy"].value(matrix(), "p"))


def test_up_to_a_stage_later_tasks_are_probes():
    early = matrix().up_to(2)
    assert (early.trained, early.probes, early.stages) == (("a", "b"), ("c", "p"), 2)
    assert FIGURES["average_accuracy"].value(early) == pytest.approx((0.45 + 0.9) / 2)
    # c: 0.0 - 0.2; p: 0.7 - 0.6
    assert FIGURES["probe_change"].value(early) == pytest.approx(-0.05)
    assert early.joint == pytest.approx([0.5, 1.0])
    assert matrix().up_to(0).trained == ()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_terms_are_the_derivative_of_the_value_by_each_cell(name: str):
    """Adding a little to a cell changes the figure by the weight of that cell's terms, for the ratio to first order."""
    figure, step = FIGURES[name], 1e-6
    for stage in range(4):
        for place, task in enumerate(matrix().tasks):
            rows = [row[:] for row in ROWS]
            rows[stage][place] += step
            slope = (figure.value(matrix(rows)) - figure.value(matrix())) / step
            weight = sum(term.weight for term in figure.terms(matrix()) if term[:2] == (task, stage))
            assert slope == pytest.approx(weight, abs=1e-5)


def test_a_stage_whose_task_is_not_evaluated_still_counts():
    """A profile may leave out the task of the last stage: T is the number of rows, not that of the last trained column."""
    m = ScoreMatrix(np.array([[0.1], [0.8], [0.5]]), ("a",))
    assert FIGURES["backward_transfer"].value(m) == pytest.approx(-0.3)


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="there is already a figure 'plasticity'"):
        register_figure(FIGURES["plasticity"])


def test_one_stage_gives_nan_where_a_figure_needs_an_earlier_or_later_task():
    single = matrix([[0.17], [0.07]], ("math",), (), None)
    values = compute_figures(single)
    assert values["average_accuracy"] == values["learning_accuracy"] == 0.07
    assert values["plasticity"] == pytest.approx(-0.10)
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {
        "backward_transfer",
        "forward_transfer",
        "forgetting_chaudhry",
        "forgetting_from_start",
        "forgetting_avalanche",
        "retention_ratio",
        "intransigence",
        "probe_change",
        "probe_forgetting",
    }


def test_a_joint_run_learns_all_tasks_in_its_one_stage():
    rows = [[0.1, 0.2, 0.6], [0.5, 0.8, 0.4]]
    joint = ScoreMatrix(np.array(rows), ("a", "b"), ("p",), stage_of=(1, 1))
    values = compute_figures(joint)
    assert values["learning_accuracy"] == values["average_accuracy"] == pytest.approx(0.65)
    # (0.5 - 0.1 + 0.8 - 0.2) / 2
    assert values["plasticity"] == pytest.approx(0.5)
    assert values["average_incremental_accuracy"] == pytest.approx(0.65)
    assert math.isnan(values["backward_transfer"])
    assert math.isnan(values["forward_transfer"])
    assert values["probe_change"] == pytest.approx(-0.2)


def test_tasks_of_a_stage_with_two_are_both_forgotten_by_the_next():
    rows = [[0.0, 0.0, 0.3], [0.6, 0.8, 0.1], [0.2, 0.7, 0.9]]
    values = compute_figures(ScoreMatrix(np.array(rows), ("a", "b", "c"), stage_of=(1, 1, 2)))
    # (0.6 - 0.2 + 0.8 - 0.7) / 2; c is trained last
    assert values["forgetting_chaudhry"] == pytest.approx(0.25)
    assert values["backward_transfer"] == pytest.approx(-0.25)
    # (0.2 / 0.6 + 0.7 / 0.8) / 2
    assert values["retention_ratio"] == pytest.approx((1 / 3 + 0.875) / 2)
    # Only c comes later: 0.1 - 0.3
    assert values["forward_transfer"] == pytest.approx(-0.2)
    # stage 1: (0.6 + 0.8) / 2; stage 2: (0.2 + 0.7 + 0.9) / 3
    assert values["average_incremental_accuracy"] == pytest.approx((0.7 + 0.6) / 2)


def test_a_missing_cell_makes_only_the_figures_that_need_it_nan():
    rows = [row[:] for row in ROWS]
    rows[3] = [math.nan] * 4
    values = compute_figures(matrix(rows))
    assert math.isnan(values["average_accuracy"])
    assert math.isnan(values["retention_ratio"])
    assert math.isnan(values["learning_accuracy"])
    assert values["forward_transfer"] == pytest.approx(0.0)


def test_a_task_that_learned_nothing_is_left_out_of_the_retention_ratio():
    rows = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.25, 0.5]]
    assert FIGURES["retention_ratio"].value(matrix(rows, probes=(), joint=None)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "arguments",
    [{"rows": ROWS[:3]}, {"probes": ()}, {"trained": (), "probes": ()}, {"joint": (0.5,)}],
    ids=["a stage short", "a probe unnamed", "no task", "joint too short"],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict):
    with pytest.raises(ConfigError, match="shape"):
        matrix(**arguments)


@st.composite
def matrices(draw: st.DrawFn, min_stages: int = 2) -> ScoreMatrix:
    stages, probes = draw(st.integers(min_stages, 5)), draw(st.integers(0, 2))
    shape = (stages + 1, stages + probes)
    scores = draw(arrays(np.float64, shape, elements=st.floats(0, 1, allow_subnormal=False)))
    return ScoreMatrix(scores, tuple(f"t{j}" for j in range(stages)), tuple(f"p{j}" for j in range(probes)))


@given(matrices())
def test_backward_transfer_is_minus_avalanche_forgetting(m: ScoreMatrix):
    assert FIGURES["backward_transfer"].value(m) == pytest.approx(-FIGURES["forgetting_avalanche"].value(m))


@given(matrices())
def test_a_maximum_over_more_stages_never_shows_less_forgetting(m: ScoreMatrix):
    avalanche, chaudhry = FIGURES["forgetting_avalanche"].value(m), FIGURES["forgetting_chaudhry"].value(m)
    assert FIGURES["forgetting_from_start"].value(m) >= chaudhry - 1e-12
    assert chaudhry >= avalanche - 1e-12


@given(matrices())
def test_final_accuracy_is_what_was_learned_plus_what_changed_since(m: ScoreMatrix):
    T = m.stages
    expected = FIGURES["learning_accuracy"].value(m) + (T - 1) / T * FIGURES["backward_transfer"].value(m)
    assert FIGURES["average_accuracy"].value(m) == pytest.approx(expected)


@given(matrices(min_stages=1))
def test_accuracies_stay_within_the_scores_and_probes_touch_no_trained_figure(m: ScoreMatrix):
    bare = ScoreMatrix(m.scores[:, : m.stages], m.trained)
    with_probes, without = compute_figures(m), compute_figures(bare)
    for name in set(with_probes) - {"probe_change", "probe_forgetting"}:
        assert with_probes[name] == pytest.approx(without[name], nan_ok=True)
    # The best of all stages is at least the start.
    assert not with_probes["probe_forgetting"] < -with_probes["probe_change"] - 1e-12
    for name in ("average_accuracy", "learning_accuracy", "average_incremental_accuracy"):
        assert -1e-12 <= with_probes[name] <= 1 + 1e-12


@given(st.integers(2, 5), st.floats(0.01, 1))
def test_a_model_that_never_changes_neither_learns_nor_forgets(stages: int, score: float):
    m = ScoreMatrix(np.full((stages + 1, stages), score), tuple(f"t{j}" for j in range(stages)))
    values = compute_figures(m)
    assert values["retention_ratio"] == pytest.approx(1)
    for name in ("plasticity", "backward_transfer", "forward_transfer", "forgetting_from_start"):
        assert values[name] == pytest.approx(0, abs=1e-12)
