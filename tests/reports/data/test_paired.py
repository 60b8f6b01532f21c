"""Paired differences, worked by hand: both kinds of intervals, what may be paired, and what is refused with its remedy."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import RunError
from harness.rundir.reader import find_runs
from harness.stats.continual import LEARNING
from harness.stats.intervals import Interval, t_interval
from harness.stats.score_matrix import Term
from reports.data.methods import find_methods
from reports.data.paired_cells import SeedPair, check_pairs, compare_pairs, estimate_of, noise_of_pairs, restriction
from reports.data.run_scores import RunScores, Side
from tests.support.reports.run_factory import write_run
from tests.support.runs import vouch

TASK = "tiny_arithmetic"


def bounds(interval: Interval) -> tuple[float, float, float, int]:
    return interval.mean, interval.low, interval.high, interval.seeds


def evaluations(folder: Path) -> RunScores:
    return RunScores(find_runs([folder])[0], folder.parts[-3])


def change_cell(run: Path, stage: str, change: Any, task: str = TASK) -> None:
    """Apply a function to a cell's results."""
    file = run / stage / "eval" / task / "results.json"
    results = json.loads(file.read_text())
    change(results)
    file.write_text(json.dumps(results))
    vouch(file)


def pair(one: RunScores, other: RunScores, *terms: Term, seed: int = 0) -> SeedPair:
    return SeedPair(seed, Side(one, list(terms)), Side(other, list(terms)))


def runs(tmp_path: Path, *scores: tuple[float, float], **options: Any) -> list[SeedPair]:
    """Write pairs of one-stage runs whose task scores as given after it, and pair them."""
    found = []
    for seed, both in enumerate(scores):
        written = [
            write_run(tmp_path, adapter, seed, [[0.5], [score]], stages=(TASK,), probes=(), **options)
            for adapter, score in zip(("opd", "aopd"), both, strict=True)
        ]
        found.append(pair(evaluations(written[0]), evaluations(written[1]), Term(TASK, 1), seed=seed))
    return found


def read_again(found: SeedPair) -> SeedPair:
    """Return a pair that reads its cells again."""
    base, other = (evaluations(side.evaluations.run.path) for side in (found.base, found.other))
    return pair(base, other, *found.base.terms, seed=found.seed)


def test_a_difference_over_three_seeds_of_ten_items_by_hand(tmp_path: Path):
    """The factory answers the first k items right, so aopd - opd turns exactly the items between."""
    found = compare_pairs(runs(tmp_path, (0.2, 0.5), (0.3, 0.5), (0.4, 0.3)))
    assert (found.base, found.other) == (pytest.approx(0.3), pytest.approx(1.3 / 3))
    assert bounds(found.seeds) == pytest.approx(bounds(t_interval([0.3, 0.2, -0.1])))
    by_item = np.mean([[0, 0, 1, 1, 1] + [0] * 5, [0, 0, 0, 1, 1] + [0] * 5, [0, 0, 0, -1, 0] + [0] * 5], axis=0)
    assert bounds(found.items) == pytest.approx((*bounds(t_interval(by_item))[:3], 1))
    assert [(turned.lost, turned.gained) for turned in found.flips] == [(0, 3), (0, 2), (1, 0)]
    assert (found.lost, found.gained, found.item_count) == (1, 5, 10)


def test_the_variances_stand_apart(tmp_path: Path):
    """What is left of two-way effects of seed and item is the noise between seeds, as statsmodels has it."""
    from statsmodels.formula.api import ols

    found = compare_pairs(runs(tmp_path, (0.2, 0.5), (0.3, 0.5), (0.4, 0.3)))
    changes = np.zeros((3, 10))
    changes[0, 2:5], changes[1, 3:5], changes[2, 3] = 1, 1, -1
    assert found.variances.items == pytest.approx(changes.var(axis=1, ddof=1).mean() / 10)
    seed, item = np.indices(changes.shape)
    table = pd.DataFrame({"change": changes.ravel(), "seed": seed.ravel(), "item": item.ravel()})
    left: Any = ols("change ~ C(seed) + C(item)", table).fit()
    assert found.variances.seeds == pytest.approx(np.var([0.3, 0.2, -0.1], ddof=1) - left.mse_resid / 10)


def test_one_seed_has_items_and_no_interval_over_seeds(tmp_path: Path):
    found = compare_pairs(runs(tmp_path, (0.2, 0.5)))
    assert math.isnan(found.seeds.low)
    assert math.isnan(found.variances.seeds)
    # three of ten items turned: 0.3 ± t_{0.975, 9} sqrt(0.21 / 9)
    assert found.items.half_width == pytest.approx(2.262157 * math.sqrt(0.21 / 9), rel=1e-6)
    assert bounds(found.interval) == bounds(found.items)
    assert found.detectable > 0.3


def test_a_change_between_stages_is_paired_with_a_change(tmp_path: Path):
    opd = evaluations(write_run(tmp_path, "opd", scores=[[0.5, 0.1, 0.6], [0.8, 0.2, 0.5], [0.3, 0.9, 0.4]]))
    aopd = evaluations(write_run(tmp_path, "aopd", scores=[[0.5, 0.1, 0.6], [0.9, 0.2, 0.5], [0.8, 0.9, 0.4]]))
    found = compare_pairs([pair(opd, aopd, Term(TASK, 2), Term(TASK, 1, -1.0))])
    assert (found.base, found.other) == (pytest.approx(-0.5), pytest.approx(-0.1))
    assert found.seeds.mean == pytest.approx(0.4)
    assert found.items.mean == pytest.approx(0.4)
    assert found.flips == ()


def test_two_stages_of_one_run_are_a_pair(tmp_path: Path):
    run = evaluations(write_run(tmp_path, "opd", scores=[[0.5, 0.1, 0.6], [0.8, 0.2, 0.5], [0.3, 0.9, 0.4]]))
    found = compare_pairs([SeedPair(0, Side(run, [Term(TASK, 1)]), Side(run, [Term(TASK, 2)]))])
    assert (found.lost, found.gained, found.seeds.mean) == (5, 0, pytest.approx(-0.5))


def test_a_missing_cell_leaves_its_seed_out(tmp_path: Path):
    pairs = runs(tmp_path, (0.2, 0.5), (0.3, 0.5))
    path = pairs[1].other.evaluations.run.path
    for file in (path / f"stage_1_{TASK}" / "eval" / TASK).iterdir():
        file.unlink()
    left = evaluations(path)
    found = compare_pairs([pairs[0], pair(pairs[1].base.evaluations, left, Term(TASK, 1), seed=1)])
    assert (found.seeds.seeds, found.base, found.other) == (1, pytest.approx(0.2), pytest.approx(0.5))


def test_without_stored_answers_the_scores_still_pair(tmp_path: Path):
    found = compare_pairs(runs(tmp_path, (0.2, 0.5), (0.3, 0.5), samples=False))
    assert found.seeds.mean == pytest.approx(0.25)
    assert (found.items.seeds, found.item_count, found.flips) == (0, 0, ())


FIELDS = {"settings": {"max_gen_toks": 24}, "prompts": "p", "grading": "g"}


def keyed(fields: dict[str, Any], key: str) -> Any:
    return lambda results: results["keys"].update(fields=fields, comparability=key)


def test_what_is_not_comparable_is_refused_with_the_field_and_the_remedy(tmp_path: Path):
    (found,) = runs(tmp_path, (0.2, 0.5))
    change_cell(found.base.evaluations.run.path, f"stage_1_{TASK}", keyed(FIELDS, "a"))
    change_cell(
        found.other.evaluations.run.path, f"stage_1_{TASK}", keyed({**FIELDS, "settings": {"max_gen_toks": 9}}, "b")
    )
    with pytest.raises(RunError, match=r"settings\.max_gen_toks \(24 and 9\) .*remove .*/stage_\*/eval "):
        compare_pairs([found])
    with pytest.raises(RunError, match="max_gen_toks"):
        compare_pairs([found], shared_items=True)


def drop_items(run: Path, keep: slice) -> None:
    file = run / f"stage_1_{TASK}" / "eval" / TASK / "samples.parquet"
    pd.read_parquet(file).iloc[keep].to_parquet(file)
    vouch(file.with_name("results.json"))


def other_items(tmp_path: Path) -> SeedPair:
    """Two evaluations on items 0-7 and 4-9 of ten: right are 0-3 of the one and 4-5 of the other."""
    (found,) = runs(tmp_path, (0.4, 0.6))
    paths = [side.evaluations.run.path for side in (found.base, found.other)]
    drop_items(paths[0], slice(0, 8))
    drop_items(paths[1], slice(4, 10))
    for path, name in zip(paths, "ab", strict=True):
        change_cell(path, f"stage_1_{TASK}", keyed({**FIELDS, "prompts": name, "grading": name}, name))
    return found


def test_other_items_are_refused_unless_asked_for_and_then_counted(tmp_path: Path):
    found = other_items(tmp_path)
    with pytest.raises(RunError, match=r"prompts \(a and b\).*--shared-items"):
        compare_pairs([found])
    shared = compare_pairs([found], shared_items=True)
    assert (shared.base, shared.other, shared.item_count) == (0.0, 0.5, 4)
    assert (shared.lost, shared.gained, shared.seeds.mean) == (0, 2, 0.5)
    assert restriction([found]) == f"{TASK}: 4 items in both, of 8 and 6"


def test_other_items_under_one_key_are_refused_too(tmp_path: Path):
    (found,) = runs(tmp_path, (0.4, 0.6))
    drop_items(found.other.evaluations.run.path, slice(0, 8))
    with pytest.raises(RunError, match=r"share 8 items of 10 and 8; .*--shared-items"):
        compare_pairs([found])


def test_no_shared_item_leaves_nothing_to_pair(tmp_path: Path):
    (found,) = runs(tmp_path, (0.4, 0.6))
    drop_items(found.base.evaluations.run.path, slice(0, 5))
    drop_items(found.other.evaluations.run.path, slice(5, 10))
    with pytest.raises(RunError, match=r"share 0 items of 5 and 5\b"):
        compare_pairs([found], shared_items=True)


def test_items_with_one_id_and_different_targets_are_not_paired(tmp_path: Path):
    found = other_items(tmp_path)
    file = found.base.evaluations.run.path / f"stage_1_{TASK}" / "eval" / TASK / "samples.parquet"
    pd.read_parquet(file).assign(target="3").to_parquet(file)
    vouch(file.with_name("results.json"))
    with pytest.raises(RunError, match=r"\b4 of the 4 items .*prompt or target"):
        compare_pairs([found], shared_items=True)


def test_the_noise_floor_is_of_equal_weights_under_other_engine_seeds(tmp_path: Path):
    (found,) = runs(tmp_path, (0.4, 0.6))
    assert math.isnan(noise_of_pairs([found]))
    for side, seed in ((found.base, 1), (found.other, 2)):
        change_cell(side.evaluations.run.path, f"stage_1_{TASK}", lambda results, seed=seed: results.update(seed=seed))
    assert noise_of_pairs([read_again(found)]) == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_the_noise_floor_counts_the_starts_own_repeats(tmp_path: Path):
    (found,) = runs(tmp_path, (0.4, 0.6))
    start = found.base.evaluations.run.path / "stage_0"
    for number, (score, metric) in enumerate([(0.7, "strict"), (0.6, "strict"), (0.0, "lenient")], start=1):
        folder = shutil.copytree(start / "eval" / TASK, start / "noise" / TASK / str(number))
        results = json.loads((folder / "results.json").read_text())
        results.update(seed=100 + number, score=score, metric=metric)
        (folder / "results.json").write_text(json.dumps(results))
        vouch(folder / "results.json")
    assert noise_of_pairs([found]) == pytest.approx(np.std([0.7, 0.6], ddof=1))
    change_cell(found.base.evaluations.run.path, "stage_0", lambda results: results.update(seed=100))
    assert noise_of_pairs([read_again(found)]) == pytest.approx(np.std([0.5, 0.7, 0.6], ddof=1))


def test_seeds_that_hold_other_items_are_refused_unless_asked_for(tmp_path: Path):
    pairs = runs(tmp_path, (0.4, 0.6), (0.4, 0.6))
    for side in (pairs[1].base, pairs[1].other):
        drop_items(side.evaluations.run.path, slice(0, 5))
    with pytest.raises(RunError, match=r"seeds share 5 items of 5 and 10; .*--shared-items"):
        compare_pairs(pairs)
    shared = compare_pairs(pairs, shared_items=True)
    assert (shared.item_count, shared.base, shared.other) == (5, pytest.approx(0.8), pytest.approx(1.0))
    assert restriction(pairs) == f"{TASK}: 5 items in both, of 10 and 5"
    for side in (pairs[1].base, pairs[1].other):
        change_cell(side.evaluations.run.path, f"stage_1_{TASK}", keyed({**FIELDS, "prompts": "b"}, "b"))
    for side in (pairs[0].base, pairs[0].other):
        change_cell(side.evaluations.run.path, f"stage_1_{TASK}", keyed(FIELDS, "a"))
    fresh = [read_again(each) for each in pairs]
    with pytest.raises(RunError, match=r"opd seed 0 .* and opd seed 1 .*prompts \(p and b\).*--shared-items"):
        compare_pairs(fresh)
    assert compare_pairs(fresh, shared_items=True).item_count == 5


@pytest.mark.parametrize("evaluated", range(1, 8))
def test_a_seed_that_is_still_evaluated_is_left_out_of_an_estimate_at_every_moment(evaluated: int, tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path, "aopd", seed, evaluated=evaluated if seed == 2 else None)
    (method,) = find_methods([tmp_path], least=1)
    sides = method.sides(LEARNING)
    check_pairs([SeedPair(seed, side, side) for seed, side in sides.items()])
    assert list(estimate_of(sides).seeds) == [0, 1]


def test_seeds_are_checked_against_each_other_while_the_first_one_is_still_evaluated(tmp_path: Path):
    for seed, (evaluated, key) in enumerate([(1, "c0"), (None, "c0"), (None, "c1")]):
        write_run(tmp_path, "aopd", seed, evaluated=evaluated, comparability=key)
    (method,) = find_methods([tmp_path], least=1)
    sides = method.sides(LEARNING)
    with pytest.raises(RunError, match="cannot be paired"):
        check_pairs([SeedPair(seed, side, side) for seed, side in sides.items()])
