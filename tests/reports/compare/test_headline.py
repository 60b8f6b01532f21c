"""The sentence a report opens with, for several seeds, one seed, unmatched learning, and missing numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.rundir.files import write_json
from reports.compare.comparison import Comparison
from reports.compare.headline import headline, sentences_of
from reports.data.frames import load_frames
from reports.data.methods import find_methods
from tests.support.reports.run_factory import write_run

START = [0.5, 0.1, 0.6]


def write(tmp_path: Path, adapter: str, learned: list[float], kept: list[float], **options: Any) -> None:
    """Write seeds whose first task scores `learned` after its stage and `kept` at the end; the second always 0.7."""
    for seed, (one, other) in enumerate(zip(learned, kept, strict=True)):
        write_run(tmp_path, adapter, seed, [START, [one, 0.2, 0.5], [other, 0.7, 0.5]], **options)


def opening_of(tmp_path: Path) -> list[str]:
    return [sentence.replace("\u00a0", " ") for sentence in headline(load_frames([tmp_path]))]


def test_matched_learning_says_who_forgot_less_in_the_direction_of_the_word(tmp_path: Path):
    write(tmp_path, "opd", [0.6, 0.6, 0.6], [0.2, 0.2, 0.3], items=20)
    write(tmp_path, "aopd", [0.6, 0.65, 0.6], [0.4, 0.45, 0.4], items=20)
    (sentence,) = opening_of(tmp_path)
    assert sentence.startswith("aopd learned 0.8 points more [−2.8, 4.4] than opd ")
    assert "forgot 16.7 less [−0.8, 34.2]; 3 seeds, 40 items; " in sentence
    assert "learning is not resolved from zero" in sentence
    assert "ends at 55.8 %, 9.2 points more [−0.7, 19.0] than opd" in sentence


def test_unmatched_learning_leaves_forgetting_unjudged(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.6], [0.2, 0.2, 0.2])
    write(tmp_path, "aopd", [0.9, 0.9, 0.9], [0.2, 0.2, 0.2])
    (sentence,) = opening_of(tmp_path)
    assert sentence.startswith("aopd learned 18.3 points more [2.3, 34.4] than opd; 3 seeds, 20 items")
    assert "ends at 45.0 %, 0.0 points more [0.0, 0.0] than opd" in sentence
    assert re.search(r"forgot 36\.7 points more \[2\.1, 71\.3\], .*not judged: .*within ±5 points", sentence)
    assert "not resolved from zero" not in sentence


def test_one_seed_has_an_interval_over_items_and_says_so(tmp_path: Path):
    write(tmp_path, "opd", [0.5], [0.2])
    write(tmp_path, "aopd", [0.9], [0.2])
    (sentence,) = opening_of(tmp_path)
    assert sentence.startswith("aopd learned 20.0 points more [")
    assert re.search("1 seed, 20 items, .*over items .*nothing about other seeds", sentence)
    assert re.search("not judged: one seed ", sentence)


def test_one_seed_without_answers_has_no_interval(tmp_path: Path):
    write(tmp_path, "opd", [0.5], [0.2], samples=False)
    write(tmp_path, "aopd", [0.9], [0.2], samples=False)
    learned = "aopd learned 20.0 points more than opd; 1 seed, .*no interval .*nothing about other seeds"
    assert re.match(learned, opening_of(tmp_path)[0])


def test_each_method_is_compared_with_the_first_that_is_not_a_control(tmp_path: Path):
    for adapter in ("none", "sft", "opd", "aopd"):
        write(tmp_path, adapter, [0.5, 0.6], [0.2, 0.2])
    assert [sentence.split(";")[0].split(" [")[0] for sentence in opening_of(tmp_path)] == [
        "opd learned 0.0 points more",
        "aopd learned 0.0 points more",
    ]
    assert all("than sft" in sentence for sentence in opening_of(tmp_path))


def test_a_method_alone_has_no_sentence(tmp_path: Path):
    write(tmp_path, "none", [0.5], [0.2])
    write(tmp_path, "opd", [0.5], [0.2])
    assert opening_of(tmp_path) == []


def test_only_runs_of_one_suite_order_and_start_are_compared(tmp_path: Path):
    write(tmp_path / "a", "opd", [0.5], [0.2])
    write(tmp_path / "b", "aopd", [0.9], [0.2], start="strong")
    assert opening_of(tmp_path) == []


def test_what_is_missing_is_named(tmp_path: Path):
    write(tmp_path, "opd", [0.5], [0.2])
    write(tmp_path, "aopd", [0.9], [0.2], evaluated=4)
    (sentence,) = opening_of(tmp_path)
    assert re.match("aopd and opd: no seed .*nothing is compared", sentence)


def test_forgetting_waits_for_the_last_stage(tmp_path: Path):
    for adapter, left in (("opd", None), ("aopd", 8)):
        write(tmp_path, adapter, [0.5, 0.6], [0.2, 0.2], evaluated=left)
    (sentence,) = opening_of(tmp_path)
    assert "2 seeds, 20 items" in sentence
    assert "forgot" in sentence


def test_forgetting_is_of_seeds_that_learning_has_and_says_where_they_are_fewer(tmp_path: Path):
    """The factory evaluates stage by stage: 7 cells leave the last stage with only its first task."""
    write(tmp_path, "opd", [0.6, 0.6, 0.6], [0.2, 0.2, 0.2])
    for seed, (kept, evaluated) in enumerate([(0.4, None), (0.4, None), (0.1, 7)]):
        write_run(tmp_path, "aopd", seed, [START, [0.6, 0.2, 0.5], [kept, 0.7, 0.5]], evaluated=evaluated)
    (sentence,) = opening_of(tmp_path)
    assert "forgot 20.0 points less" in sentence
    assert "2 seeds, 20 items" in sentence
    assert "which is not judged" in sentence
    for run in (tmp_path / "tiny/aopd/default").glob("seed1/stage_2*/eval/tiny_arithmetic"):
        shutil.rmtree(run)
    (sentence,) = opening_of(tmp_path)
    assert "(over 1 seed), which is not judged" in sentence


def test_orders_that_end_with_other_tasks_are_compared_in_learning_alone(tmp_path: Path):
    write_run(tmp_path, "opd", 0, [START, [0.6, 0.2, 0.5], [0.2, 0.7, 0.5]])
    turned = [[0.1, 0.5, 0.6], [0.8, 0.5, 0.5], [0.5, 0.9, 0.5]]
    write_run(tmp_path, "opd", 0, turned, order="back", stages=("tiny_weather", "tiny_arithmetic"))
    one, other = (tmp_path / "tiny/opd" / order for order in ("default", "back"))
    (sentence,) = sentences_of(Comparison(find_methods([one, other])))
    assert "learned 20.0 points more" in sentence
    assert sentence.endswith("forgetting and BWT are not compared.")


@pytest.mark.parametrize("seeds", [(0, 1), (5, 6)])
def test_seeds_are_paired_or_a_sentence_says_that_they_are_not(tmp_path: Path, seeds: tuple[int, int]):
    for seed in (0, 1):
        write_run(tmp_path, "opd", seed, [START, [0.5, 0.2, 0.5], [0.2, 0.7, 0.5]])
    for seed in seeds:
        write_run(tmp_path, "aopd", seed, [START, [0.5, 0.2, 0.5], [0.2, 0.7, 0.5]])
    opening = opening_of(tmp_path)
    alone = len(opening) == 1 and opening[0].startswith("aopd and opd have no seed in common")
    assert alone == (seeds == (5, 6))


def test_single_runs_of_different_seeds_are_compared_by_request_alone(tmp_path: Path):
    for adapter, seed in (("opd", 0), ("aopd", 1)):
        write_run(tmp_path, adapter, seed, [START, [0.5, 0.2, 0.5], [0.2, 0.7, 0.5]])
    assert opening_of(tmp_path) == ["aopd and opd have no seed in common, so they are not compared."]
    assert re.search("learned .* than opd", sentences_of(Comparison(find_methods([tmp_path])))[0])


def test_the_profile_and_a_reversed_sign_are_named(tmp_path: Path):
    """Greedily aopd learns 20 points more, sampled at temperature 1 it learns 10 points less; the ends have one sign."""
    for adapter, greedy, policy in (("opd", 0.5, 0.6), ("aopd", 0.9, 0.4)):
        for seed in range(3):
            scores, sampled = ([START, [one, 0.2, 0.5], [0.3, 0.7, 0.5]] for one in (greedy, policy))
            write_run(tmp_path, adapter, seed, scores, items=20, further={"paper": scores, "policy": sampled})
    (sentence,) = opening_of(tmp_path)
    assert sentence.startswith("Under greedy decoding aopd learned 20.0 points more")
    reversed_sign = sentence.partition("The sign reverses: ")[2]
    assert reversed_sign.startswith("under policy decoding it learned 10.0 points less [")
    assert "paper" not in reversed_sign
    found = find_methods([tmp_path], profile="policy")
    assert sentences_of(Comparison(found))[0].startswith("Under policy decoding aopd learned 10.0 points less")


def test_a_reversed_sign_is_of_the_tasks_that_both_profiles_have(tmp_path: Path):
    """Of the first task aopd learns 10 points more under both profiles, of the second, which is greedy alone, 50 less."""
    for adapter, first, second in (("opd", 0.5, 0.9), ("aopd", 0.6, 0.4)):
        for seed in range(3):
            scores = [START, [first, 0.2, 0.5], [first, second, 0.5]]
            run = write_run(tmp_path, adapter, seed, scores, items=20, further={"policy": scores})
            found = json.loads((run / "manifest.json").read_text())
            found["profiles"]["policy"].remove("tiny_weather")
            write_json(run / "manifest.json", found)
    (sentence,) = opening_of(tmp_path)
    assert sentence.startswith("Under greedy decoding aopd learned 20.0 points less")
    assert "reverses" not in sentence


def test_a_comparison_names_methods_that_end_below_their_start(tmp_path: Path):
    write(tmp_path, "opd", [0.6, 0.6], [0.2, 0.2])
    write_run(tmp_path, "aopd", 0, [START, [0.9, 0.2, 0.5], [0.1, 0.3, 0.5]])
    write_run(tmp_path, "aopd", 1, [START, [0.9, 0.2, 0.5], [0.1, 0.3, 0.5]])
    sentence, below = sentences_of(Comparison(find_methods([tmp_path])))
    assert "It ends at 20.0 %, 25.0 points less" in sentence.replace("\u00a0", " ")
    assert re.match(r"aopd is not shown .*above its start: at 20\.0 %, 10\.0 points", below)
