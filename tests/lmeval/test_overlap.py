"""Training prompts in test sets: found in any case and spacing, distinguished from templates, recorded and reported."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.load import load_suite
from harness.config.models import Scratch
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.lmeval.library import TaskLibrary
from harness.lmeval.overlap import Split, compare_splits, normalised, read_split, stream_overlap
from harness.pipeline.dry_run import print_dry_run
from harness.pipeline.run import run
from harness.rundir.process.progress import Display, Event
from harness.rundir.records.overlap_record import Overlap, OverlapRow
from harness.terminal.console import SafeConsole
from tests.support.models import DOCS, micro_suite, write_task, write_yaml
from tests.support.runs import vouch
from tests.support.task_files import SHARED_DATA, needs_shared_data

FORMAT = "Reason step by step and then write the final answer on a line of its own."
LEAKED = {"train": [*DOCS["train"], *DOCS["test"][:2]], "test": DOCS["test"]}


def split(*texts: str) -> Split:
    return Split("made_up", [normalised(text) for text in texts])


def compared(training: Sequence[str], test: Sequence[str]) -> OverlapRow:
    (row,) = compare_splits("stage 1", split(*training), [split(*test)])
    return row


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{i}" for i in range(count))


def overlap_of(suite: Suite, order: str = "default") -> Overlap:
    library = TaskLibrary(suite.include, suite.data)
    tasks = {name: library.load(name) for name in suite.tasks}
    return stream_overlap(RunSpec(suite, next(iter(suite.adapters)), 0, order), tasks, library)


def test_case_white_space_and_compatible_forms_make_no_difference():
    assert normalised("  Ｗeather\tin\n\u00a0STRASSE ﬁ½ ") == "weather in strasse fi1⁄2"
    assert normalised("weather in straße") == "weather in strasse"
    assert normalised("3+5-8") != normalised("3+5+8")


def test_test_items_whose_prompt_is_trained_on_are_counted():
    row = compared(["3+5", "Weather in Oslo", "weather in  oslo"], ["weather in oslo", "WEATHER in\nOslo", "3+6", "3"])
    assert (row.training_items, row.test_items, row.exact) == (3, 4, 2)
    assert (row.ngram_items, row.ngram_share_mean, row.too_short) == (0, 0.0, 4)
    assert row.found


def test_ngrams_are_runs_of_13_words_without_case_and_punctuation():
    # 20 words have 8 runs of 13; the training prompt holds the first 15 words, 3 of these runs
    training = [f"{words('W', 15)}? No, {words('z', 5)}!"]
    row = compared(training, [words("w", 20), words("w", 12), words("y", 13), "w12 " + words("w", 12)])
    assert (row.exact, row.ngram_items, row.ngram_share_mean, row.too_short) == (0, 1, 0.375, 1)


@pytest.mark.parametrize("training_items", [4, 11, 40])
def test_what_many_training_prompts_share_is_a_template_and_a_leaked_item_under_it_is_found(training_items: int):
    training = [f"{words(f'own{i}_', 20)} {FORMAT}" for i in range(training_items)]
    clean = [f"{words(f'other{i}_', 20)} {FORMAT}" for i in range(5)]
    assert not compared(training, clean).found
    row = compared(training, [*clean, f"Problem 7: {words('own2_', 20)} {FORMAT}", f"3+5 {FORMAT}"])
    # the leaked item and its two new words have 22 words besides the template: 10 runs of 13, 2 of them with a new word
    assert (row.exact, row.ngram_items, row.ngram_share_mean, row.too_short) == (0, 1, 0.8, 1)


def test_neither_a_text_that_few_training_prompts_share_nor_a_repeated_prompt_is_a_template():
    training = [f"{words('api', 30)} request {i}" for i in range(3)] + [words("own", 20)] * 30
    others = [words(f"own{i}_", 20) for i in range(30)]
    row = compared([*training, *others], [f"{words('api', 30)} something else", words("own", 15)])
    assert row.ngram_items == 2


LETTERS = st.text("abcxyzÀéßΩ0189 +-?.", min_size=1, max_size=30).filter(str.strip)


@given(st.lists(LETTERS, min_size=1, max_size=8), st.data())
def test_an_item_that_is_trained_on_is_found_in_any_case_and_spacing(training: list[str], data: st.DataObject):
    item = data.draw(st.sampled_from(training))
    cased = data.draw(st.sampled_from([str.upper, str.lower, str.swapcase, str.title]))(item)
    spaced = data.draw(st.sampled_from([" ", "\n", "\t \n"])).join(["", *cased.split(), ""])
    assert compared(training, ["never seen", spaced]).exact == 1


@given(st.integers(13, 30), st.text(max_size=20), st.text(max_size=20), st.integers(0, 20))
def test_a_long_item_quoted_in_a_training_prompt_is_found(length: int, before: str, after: str, others: int):
    item = words("own", length)
    training = [f"{before} {item} {after}", *(words(f"other{i}_", 20) for i in range(others))]
    row = compared(training, [item.title()])
    assert (row.ngram_items, row.ngram_share_mean) == (1, 1.0)


@given(st.lists(st.sampled_from([words("a", 14), words("a", 13), words("b", 20), "c", "C"]), max_size=30), st.randoms())
def test_the_order_of_items_makes_no_difference(items: list[str], shuffler: random.Random):
    test = [words("a", 20), "c", words("b", 13)]
    shuffled = shuffler.sample(items, len(items))
    assert compared(shuffled, test[::-1]) == compared(items, test)


def test_a_splits_digest_names_its_items_in_any_order_and_answers_are_part_of_them(library: TaskLibrary):
    task = library.load("tiny_weather")
    docs = task.test_docs(5)
    assert read_split(task, docs[::-1]).digest == read_split(task, docs).digest
    changed = [{**docs[0], "target": "other"}, *docs[1:]]
    assert read_split(task, changed).digest != read_split(task, docs).digest
    assert read_split(task, docs[1:]).digest != read_split(task, docs).digest


def test_multiple_choice_prompts_are_compared_by_their_text(tmp_path: Path):
    choice: dict[str, Any] = {"output_type": "multiple_choice", "generation_kwargs": None}
    docs = {"train": [{"prompt": "x", "target": 0}], "test": [{"prompt": "Which is it?", "target": 1}]}
    write_task(tmp_path, docs=docs, grader=None, **choice, metric_list=[{"metric": "acc"}], doc_to_choice=["in a", "b"])
    write_task(tmp_path, "contexts", docs, None, **choice, doc_to_text="target", doc_to_choice=["in a", "b"])
    library = TaskLibrary([tmp_path])
    plain, contexts = library.load("made_up"), library.load("contexts")
    assert plain.prompt_text(plain.test_docs()[0]) == "Which is it?"
    assert contexts.prompt_text(contexts.test_docs()[0]) == "in a\nb"


def test_the_tiny_suite_trains_on_no_test_prompt():
    suite = load_suite("tiny")
    found = overlap_of(suite)
    assert len(found.rows) == (len(suite.stages) + 6) * len(suite.tasks)
    assert {row.source for row in found.rows} == {"stage 1", "stage 2", "stage 3", "stage 4", "warm-up"}
    assert {row.test_items for row in found.rows} == {200}
    assert found.found == []
    limited = {row.trained_task: row.training_items for row in found.rows if row.source == "warm-up"}
    assert isinstance(suite.student, Scratch)
    assert limited == suite.student.warmup.strengths["weak"].items


def test_a_joint_stage_is_compared_task_by_task(micro: Suite):
    apart, joint = overlap_of(micro), overlap_of(micro, "joint")
    assert {(row.source, row.trained_task) for row in joint.rows if row.source != "warm-up"} == {
        ("stage 1", "tiny_weather"),
        ("stage 1", "tiny_currency"),
    }
    assert [row.training_items for row in joint.rows] == [row.training_items for row in apart.rows]


@needs_shared_data
def test_gsm8k_trains_on_no_test_prompt_of_the_real_records():
    data = [f"data.gsm8k={SHARED_DATA}/gsm8k", f"data.toolalpaca_eval={SHARED_DATA}/toolalpaca/eval_simulated.json"]
    found = overlap_of(load_suite("gsm8k-toolalpaca", ["stages=[gsm8k]", "probes=[toolalpaca]", *data]))
    counts = [(row.test_task, row.training_items, row.test_items, row.too_short) for row in found.rows]
    assert counts == [("gsm8k", 7473, 400, 0), ("toolalpaca", 7473, 84, 0)]
    assert found.found == []


@needs_shared_data
def test_the_smoke_suite_is_found_to_train_on_all_its_test_prompts():
    found = overlap_of(load_suite("gsm8k-toolalpaca-smoke"))
    own = [row for row in found.rows if row.source != "warm-up" and row.trained_task == row.test_task]
    assert [row.exact for row in own] == [row.test_items for row in own] == [20, 7, 7, 6]
    # other APIs share the format's instruction only, a template
    assert {row.ngram_items for row in found.rows if not row.exact} == {0}


class StoppedError(Exception):
    """Ends a run from within."""


def started(suite: Suite, out: Path) -> tuple[Path, list[Event]]:
    """Begin a run, stop it when it would evaluate, and return its manifest's path and its events."""
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if event.activity.startswith("evaluate"):
            raise StoppedError

    spec = RunSpec(suite, "none", 0, out=out)
    with pytest.raises(StoppedError):
        run(spec, report)
    return spec.path / "manifest.json", events


def leaking(folder: Path) -> Suite:
    write_task(folder / "tasks", docs=LEAKED)
    raw = {**micro_suite(), "stages": ["tiny_weather", "made_up"], "include": ["tasks"]}
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)))


def test_the_manifest_records_every_comparison_and_an_older_one_goes_on(micro: Suite, tmp_path: Path):
    path, events = started(micro, tmp_path)
    recorded = json.loads(path.read_text())
    assert Overlap.model_validate(recorded["overlap"]) == overlap_of(micro).condensed()
    assert set(recorded["overlap"]["digests"]) >= {"stage 1 tiny_weather", "warm-up tiny_weather", "test tiny_reminder"}
    assert not [event for event in events if event.warning]
    del recorded["overlap"]
    path.write_text(json.dumps(recorded))
    vouch(path)
    assert "overlap" not in json.loads(started(micro, tmp_path)[0].read_text())


def test_a_run_that_trains_on_test_prompts_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, events = started(leaking(tmp_path), tmp_path / "runs")
    (warning,) = [event.activity for event in events if event.warning]
    assert "(2 of 4 of made_up in stage 2 made_up)" in warning
    assert warning in caplog.text
    (row,) = Overlap.model_validate(json.loads(path.read_text())["overlap"]).found
    assert (row.source, row.trained_task, row.test_task, row.training_items, row.exact) == (
        *("stage 2", "made_up", "made_up", 22, 2),
    )


def test_runs_with_the_same_warning_say_it_once():
    text = io.StringIO()
    with Display(SafeConsole(file=text, width=200, no_color=True)) as display:
        for name in ("tiny opd seed 0", "tiny aopd seed 0"):
            display(Event(name, "Test prompts [again]", warning=True))
    assert text.getvalue().count("warning: Test prompts [again]") == 1


def planned(suite: Suite) -> str:
    text = io.StringIO()
    specs = [RunSpec(suite, entry, 0) for entry in ("opd", "none")]
    print_dry_run(SafeConsole(file=text, width=200, no_color=True), specs)
    return text.getvalue()


def test_a_plan_shows_what_overlaps_or_that_nothing_does(micro: Suite, tmp_path: Path):
    sentence = "No training prompt occurs in a test set (comparisons: 12; 0 share 13-grams, for which 100 % of the test"
    assert planned(micro).count(sentence) == 1
    text = planned(leaking(tmp_path))
    (line,) = [line for line in text.splitlines() if line.startswith("│ stage 2 made_up")]
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["22", "made_up", "4", "2", "0", "0.0", "4"]
    assert len(re.findall(r"warning: .*\(2 of 4 of made_up", text)) == 1


def test_a_manifest_lists_what_found_most_and_counts_the_rest_whatever_the_stages():
    def row(stage: int, test: int) -> OverlapRow:
        return OverlapRow(
            source=f"stage {stage}", trained_task=f"t{stage}", test_task=f"t{test}", training_items=10, test_items=10,
            exact=int(stage == test), ngram_items=2, ngram_share_mean=0.1, too_short=1,
        )  # fmt: skip

    def size(stages: int) -> int:
        rows = tuple(row(stage, test) for stage in range(stages) for test in range(stages))
        whole = Overlap(rows=rows, digests={f"test t{i}": "0" * 16 for i in range(stages)})
        kept = whole.condensed()
        assert kept.summary == whole.summary
        assert sum(row.exact for row in kept.rows) == min(stages, len(kept.rows))
        assert len(kept.rows) + kept.unlisted.comparisons == stages**2
        assert kept.condensed() == kept
        return len(json.dumps(kept.as_json()))

    assert size(80) - size(40) < 80 * 40
