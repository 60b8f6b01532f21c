"""What a figure counts: stages that a method trains itself, its own probes, seeds that are pairs, items with answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RunError
from harness.rundir.files import write_json
from harness.stats.continual import PROBE_CHANGE
from reports.compare.comparison import Comparison
from reports.compare.headline import sentences_of
from reports.compare.rows import AVERAGE
from reports.data.flips import by_item_table, compare_answers
from reports.data.frames import load_frames
from reports.data.learning_curves import KEPT, OTHER_SEEDS
from reports.data.methods import ENTROPY, find_methods
from reports.data.tables import advantage_table, figure_table, with_plain_columns
from reports.document.grids import retention_grids, several_answers_grid
from reports.document.sentences import opening_sentences
from reports.report.sections.pulls_section import read_pulls
from tests.support.reports.run_factory import curve_points, write_run
from tests.support.runs import vouch

FIRST, SECOND, PROBE = "tiny_arithmetic", "tiny_weather", "tiny_long_sums"
AFTER_FIRST = [[0.1, 0.6, 0.8], [0.9, 0.5, 0.4]]  # of SECOND, PROBE and FIRST, at the start and at the end


def fix_first_stage(run: Path) -> None:
    """Let a run's first stage have an adapter of its own, which trains all methods alike."""
    file = run / "manifest.json"
    found = json.loads(file.read_text())
    found["stages"][0]["adapter"] = "sft"
    write_json(file, found)


def write_branch(root: Path, adapter: str, seed: int = 0, **options: Any) -> Path:
    """Write a run that starts from another run's stage, which trained FIRST; the suite it then trains names FIRST a probe."""
    origin = {"trained": [{"task": FIRST, "items": None}]}
    tasks: dict[str, Any] = {"stages": (SECOND,), "probes": (PROBE, FIRST)}
    return write_run(root, adapter, seed, AFTER_FIRST, **tasks, config={"origin": origin}, **options)


def forgetting(adapter: str, seed: int) -> Callable[[int], Sequence[dict[str, Any]]]:
    """Return equal curves of the first stage, and for the second what AOPD loses more of than OPD."""
    lost = 0.5 + 0.05 * seed if adapter == "aopd" else 0.1
    gone = [lost * step / 4 for step in range(5)]

    def curves(stage: int) -> Sequence[dict[str, Any]]:
        own = [0.1, 0.3, 0.5, 0.7, 0.9]
        if stage == 1:
            return curve_points({FIRST: own, PROBE: [0.6, 0.65, 0.7, 0.75, 0.8]})
        return curve_points({SECOND: own, FIRST: [0.9 - each for each in gone], PROBE: [0.8 - each for each in gone]})

    return curves


def test_a_stage_that_trains_all_methods_alike_says_nothing_about_their_difference(tmp_path: Path):
    for adapter in ("opd", "aopd"):
        for seed in range(3):
            fix_first_stage(write_run(tmp_path, adapter, seed, curves=forgetting(adapter, seed)))
    compared = Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"]))
    kept = {row.task: row.difference.interval.mean for row in compared.rows if row.quantity is KEPT}
    assert kept.keys() == {AVERAGE, SECOND}
    assert kept[AVERAGE] == pytest.approx(kept[SECOND])
    assert kept[SECOND] < -0.15


def test_averages_over_own_tasks_name_the_tasks_that_they_leave_out(tmp_path: Path):
    for seed in range(2):
        fix_first_stage(write_run(tmp_path, "opd", seed))
    frames = load_frames([tmp_path])
    table = with_plain_columns(figure_table(frames.scores)).set_index("figure")
    assert table["mean"]["learning_accuracy"] == pytest.approx(0.9)
    naming = {name for name, formula in table["formula"].items() if formula.endswith(f"(without {FIRST})")}
    assert naming == {"learning_accuracy", "plasticity"}
    (said,) = (each for each in opening_sentences(frames) if each.startswith("opd (2 seeds) scored 90.0"))
    assert f"its own stage (without {FIRST}) and 60.0" in said
    plain = load_frames([write_run(tmp_path / "plain", "opd", seed) for seed in range(2)])
    assert not figure_table(plain.scores)["formula"].str.contains("without").any()
    assert "without" not in " ".join(opening_sentences(plain))


def test_means_over_steps_are_of_stages_that_a_method_trains_itself(tmp_path: Path):
    run = write_run(
        tmp_path, "aopd", logged={"pull_up": 0.02, "pull_down": 0.09, "advantage_mean": -0.5, "entropy": 0.4}
    )
    fix_first_stage(run)
    log = next(run.glob("stage_1_*/train/steps.jsonl"))
    shared = {"pull_up": 0.01, "pull_down": 0.01, "advantage_mean": -0.1, "entropy": 0.8}
    lines = [json.dumps(json.loads(line) | shared) for line in log.read_text().splitlines()]
    log.write_text("\n".join(lines) + "\n")
    frames = load_frames([tmp_path])
    assert "0.0200 up and 0.0900 down" in read_pulls(frames)
    assert advantage_table(frames.own_steps)["advantage_mean"].tolist() == pytest.approx([-0.5])
    assert find_methods([tmp_path], least=1)[0].training(ENTROPY, 2) == {0: pytest.approx(0.4)}


def test_a_task_is_forgotten_since_its_own_stage_in_one_suite_and_since_the_start_where_it_is_a_probe(tmp_path: Path):
    for seed in range(3):
        scores = [[0.5, 0.1, 0.6], [0.9, 0.2, 0.5], [0.3 + 0.1 * seed, 0.9, 0.4]]
        write_run(tmp_path / "one", "aopd", seed, scores, suite="one")
        tasks: dict[str, Any] = {"stages": (SECOND, "tiny_calendar"), "probes": (FIRST,)}
        write_run(
            tmp_path / "two", "aopd", seed, [[0.5, 0.1, 0.6], [0.6, 0.2, 0.5], [0.3, 0.9, 0.4]], suite="two", **tasks
        )
    alone, both = (load_frames(paths) for paths in ([tmp_path / "one"], [tmp_path / "one", tmp_path / "two"]))
    expected = by_item_table(alone, compare_answers(alone)).set_index("task")["forgotten"][FIRST]
    found = by_item_table(both, compare_answers(both)).set_index(["label", "task"])["forgotten"]
    assert found["aopd, one", FIRST] == expected
    assert (expected.mean, expected.seeds) == (pytest.approx(0.5), 3)
    assert found["aopd, two", FIRST].seeds == 3


def test_a_task_that_was_trained_before_the_start_counts_in_no_figure_on_probes(tmp_path: Path):
    for seed in range(2):
        write_branch(tmp_path, "opd", seed)
    figures = with_plain_columns(figure_table(load_frames([tmp_path]).scores)).set_index("figure")["mean"]
    assert figures["probe_change"] == pytest.approx(0.5 - 0.6)
    assert figures["probe_forgetting"] == pytest.approx(0.6 - 0.5)
    assert figures[f"probe_change:{PROBE}"] == pytest.approx(0.5 - 0.6)
    assert figures[f"changed:{FIRST}"] == pytest.approx(0.4 - 0.8)
    (method,) = find_methods([tmp_path], least=1)
    assert method.estimate(PROBE_CHANGE).by_seed == pytest.approx({0: 0.5 - 0.6, 1: 0.5 - 0.6})
    assert method.estimate(PROBE_CHANGE, FIRST).by_seed == pytest.approx({0: 0.4 - 0.8, 1: 0.4 - 0.8})


def test_a_task_that_was_trained_before_the_start_is_called_so_and_forgotten_since_the_start(tmp_path: Path):
    frames = load_frames([write_branch(tmp_path, "opd")])
    (grid,) = retention_grids(frames.scores)
    assert grid.header == ["stage", SECOND, f"{FIRST} (trained before)", f"{PROBE} (probe)"]
    assert grid.rows[1][1:] == ["90.0", "40.0", "50.0"]
    setting = opening_sentences(frames)[0]
    assert re.search(rf"1 probe \({PROBE}\) never trained\. .*before.*: {FIRST}\.", setting)
    forgotten = by_item_table(frames, compare_answers(frames)).set_index("task")["forgotten"]
    assert {task: interval.mean for task, interval in forgotten.items()} == pytest.approx({FIRST: 0.4, PROBE: 0.1})


def test_a_task_is_never_trained_only_if_no_run_of_a_report_nor_what_came_before_trains_it(tmp_path: Path):
    runs = [write_branch(tmp_path, "opd", start="sft-warm"), write_run(tmp_path / "other", "opd", suite="other")]
    assert f"1 probe ({PROBE}) never trained." in opening_sentences(load_frames(runs))[0]
    assert "efore" not in opening_sentences(load_frames(runs))[0]


def test_seeds_of_which_only_some_were_trained_on_a_probe_before_their_start_are_refused(tmp_path: Path):
    write_branch(tmp_path, "opd", 0)
    write_run(tmp_path, "opd", 1, AFTER_FIRST, stages=(SECOND,), probes=(PROBE, FIRST))
    with pytest.raises(RunError, match=f"{FIRST} was trained before the start of only one"):
        load_frames([tmp_path])


def test_seeds_that_start_from_other_weights_are_no_pairs_and_all_count(tmp_path: Path):
    for adapter, seeds in (("opd", 5), ("aopd", 3)):
        for seed in range(seeds):
            scores = [[0.5, 0.1, 0.6], [0.3 + 0.1 * seed, 0.2, 0.5], [0.3, 0.3 + 0.1 * seed, 0.4]]
            write_run(tmp_path, adapter, seed, scores, weights=f"{adapter}{seed}")
    compared = Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"]), tasks=[FIRST])
    learned = next(row for row in compared.rows if row.title == f"learned: {FIRST}")
    assert learned.difference.interval.mean == pytest.approx(0.4 - 0.5)  # the means of three and of five seeds
    notes = " ".join(compared.notes())
    assert "left out" not in notes
    assert "5 and 3" in notes


def other_prompts(root: Path, digest: str) -> None:
    for file in root.rglob("results.json"):
        found = json.loads(file.read_text())
        found["keys"]["fields"] = {"prompts": digest, "backend": "hf"}
        write_json(file, found)
        vouch(file)


@pytest.mark.parametrize("options", [{"samples": False}, {"weights": "apart"}], ids=["no answers", "no pairs"])
def test_items_that_both_have_need_the_answers_of_pairs(options: dict[str, Any], tmp_path: Path):
    for adapter, items in (("opd", 10), ("aopd", 20)):
        for seed in range(3):
            own: dict[str, Any] = {"weights": f"{adapter}{seed}"} if "weights" in options else options
            write_run(tmp_path, adapter, seed, items=items, comparability=adapter, **own)
        other_prompts(tmp_path / "tiny" / adapter, adapter)
    methods = find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"])
    with pytest.raises(RunError, match="prompts") as refused:
        _ = Comparison(methods, shared_items=True).rows
    assert "or compare the items" not in str(refused.value)


def test_single_runs_of_other_seeds_have_no_curves_to_pair(tmp_path: Path):
    for seed in range(2):
        write_run(tmp_path, "opd", seed, curves=forgetting("opd", 0))
    compared = Comparison(find_methods([tmp_path / f"tiny/opd/default/seed{seed}" for seed in range(2)]))
    assert {row.learning for row in compared.rows if row.quantity is KEPT} == {OTHER_SEEDS}


def test_one_seed_with_one_item_has_no_bracket_and_none_is_spoken_of(tmp_path: Path):
    for adapter, score in (("opd", 0), ("aopd", 1)):
        write_run(tmp_path, adapter, 0, [[0, 0, 0], [score, 0, 0], [0, score, 0]], items=1)
    sentences = " ".join(sentences_of(Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"]))))
    assert "100.0 points more" in sentences
    assert "bracket" not in sentences
    assert "[" not in sentences


def test_a_terminals_half_width_is_that_of_the_t_interval_where_the_interval_is_cut(tmp_path: Path):
    for seed, score in enumerate((0.95, 1.0, 1.0)):
        write_run(tmp_path, "aopd", seed, [[score] * 3] * 3, items=20)
    scores = load_frames([tmp_path]).scores
    # s / sqrt(3) = 1.667 points, times t(0.975, 2) = 4.303
    assert retention_grids(scores, compact=True)[0].rows[0][1] == "98 ±7"


def test_the_end_of_an_unfinished_run_is_not_known(tmp_path: Path):
    run = write_run(tmp_path, "aopd", evaluated=3)
    for file in run.rglob("results.json"):
        found = json.loads(file.read_text())
        write_json(file, found | {"metrics": {**found.get("metrics", {}), "pass@2": 0.5}})
        vouch(file)
    rows = several_answers_grid(load_frames([tmp_path])).rows
    assert rows
    assert {end for row in rows for end in row[3:]} == {"50.0 → –"}


def test_runs_that_have_logged_no_step_after_a_shared_stage_are_reported(tmp_path: Path):
    for adapter in ("opd", "aopd"):
        fix_first_stage(write_run(tmp_path, adapter))
    for log in tmp_path.rglob("steps.jsonl"):
        log.unlink()
    frames = load_frames([tmp_path])
    assert list(frames.own_steps.columns) == list(frames.steps.columns)
    assert Comparison(find_methods([tmp_path / "tiny/opd", tmp_path / "tiny/aopd"])).rows
