"""Evaluation profiles: several answers of each item from one call, graded one by one, in separate cells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from harness.config.evaluation import Decoding, Evaluation, Profile
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines.engine import Completion, Sampling
from harness.errors import RunError, TaskError
from harness.evaluation import hf_model
from harness.evaluation.cell_cache import CellResult, SharedCells
from harness.evaluation.evaluator import evaluate_checkpoint
from harness.evaluation.regrading import regrade_runs
from harness.lmeval.generation_settings import tasks_by_profile, under_profiles
from harness.lmeval.library import TaskLibrary
from harness.pipeline.checkpoint_matrix import evaluate_checkpoints
from harness.pipeline.run import run
from harness.rundir.store import is_finished
from reports.data.frames import load_frames
from reports.report.build import build_report
from tests.support.evaluation import subject
from tests.support.models import micro_suite, write_task, write_yaml

SAMPLED: dict[str, Any] = {"n": 4, "temperature": 1.0, "pass_at": [1, 2, 4]}
PROFILES = {"greedy": {}, "sampled": SAMPLED}


def evaluation(**profiles: Any) -> Evaluation:
    return Evaluation.model_validate({"limit": 3, "decoding": {"max_gen_toks": 24}, "profiles": profiles or PROFILES})


def cells_of(
    folder: Path, library: TaskLibrary, settings: Evaluation, out: Path, names: Sequence[str] = ("tiny_weather",)
) -> dict[str, CellResult]:
    tasks = under_profiles(map(library.load, names), settings)
    return evaluate_checkpoint(subject(folder), list(tasks.values()), library, settings, SharedCells(out))


def test_a_suite_without_profiles_is_what_it_was():
    assert "profiles" not in Evaluation().model_dump()
    assert list(Evaluation().all_profiles.items()) == [("default", Profile())]
    assert Evaluation.model_validate(evaluation().model_dump()) == evaluation()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            {"n": 4, "pass_at": [1, 8]},
            r"pass_at .*\bpass@8, but n is 4\b",
        ),
        ({"n": 4, "temperature": 0}, "n is 4, but greedy decoding"),
        ({"n": 4, "do_sample": False}, "greedy decoding"),
        ({"n": 0}, "greater than 0"),
        ({"n": 2, "pass_at": [0]}, "greater than 0"),
        ({"samples": 4}, "Extra inputs are not permitted"),
    ],
)
def test_profiles_that_contradict_themselves_are_refused(profile: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        Profile.model_validate(profile)


def test_a_profiles_name_is_part_of_a_folders_name():
    with pytest.raises(ValidationError, match="should match pattern"):
        evaluation(**{"a/b": {}})


def test_a_temperature_says_whether_to_sample():
    greedy = Decoding(do_sample=False, temperature=0.0, max_gen_toks=9)
    assert Profile(temperature=0.6).over(greedy) == Decoding(do_sample=True, temperature=0.6, max_gen_toks=9)
    sampling = Decoding(do_sample=True, temperature=1.0)
    assert Profile(temperature=0).over(sampling) == Decoding(do_sample=False, temperature=0)
    assert Profile().over(greedy) == greedy


def test_each_profile_has_settings_of_its_own_on_the_loaded_task(library: TaskLibrary, monkeypatch: pytest.MonkeyPatch):
    task = library.load("tiny_weather")
    monkeypatch.setattr(type(task.lmeval), "download", lambda *_, **__: pytest.fail("loaded again"))
    before = task.generation
    cells = under_profiles([task], evaluation())
    assert list(cells) == ["tiny_weather", "tiny_weather@sampled"]
    greedy, sampled = cells.values()
    assert greedy.generation == {**before, "max_gen_toks": 24}
    assert sampled.generation == {**before, "max_gen_toks": 24, "n": 4, "temperature": 1.0, "do_sample": True}
    assert task.generation == before
    assert sampled.lmeval.dataset is task.lmeval.dataset


def test_several_greedy_answers_are_refused_where_the_task_decides(library: TaskLibrary):
    with pytest.raises(TaskError, match=r"profile many .*4 answers .*greedy"):
        under_profiles([library.load("tiny_weather")], evaluation(greedy={}, many={"n": 4}))


def test_a_task_of_likelihoods_stands_under_the_first_profile_alone(tmp_path: Path):
    rows = [{"prompt": "pick", "answers": ["Oslo", "monday"], "label": 0}]
    write_task(
        tmp_path, "choice", docs={"train": rows, "test": rows}, output_type="multiple_choice", doc_to_target="label",
        doc_to_choice="answers", generation_kwargs=None, grader=None, metadata={"version": 1.0},
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    library = TaskLibrary([tmp_path])
    cells = under_profiles([library.load("choice"), library.load("tiny_weather")], evaluation())
    assert list(cells) == ["choice", "tiny_weather", "tiny_weather@sampled"]
    expected = {"greedy": ["choice", "tiny_weather"], "sampled": ["tiny_weather"]}
    assert tasks_by_profile(cells.values(), evaluation()) == expected


@pytest.mark.pitfall(
    "with `repeats`, lm-eval keeps only the first answer of each item, and graders get nested lists",
    area="lm-eval",
    guard="`harness/lmeval/task.py` sets repeats to 1; the `n` of a profile draws several answers",
    evidence="the task keeps its repeats",
)
def test_repeats_of_a_task_file_draw_and_drop_nothing(student_folder: Path, tmp_path: Path):
    write_task(tmp_path / "task", repeats=3)
    found = cells_of(student_folder, TaskLibrary([tmp_path / "task"]), Evaluation(limit=2), tmp_path, ["made_up"])
    assert found["made_up"].samples["sample"].tolist() == [0, 0]


class SomeRight:
    """Stands in for an engine that gets 0, 1, 2, 3, 4 and 4 of the four answers right to `say 0` to `say 5`."""

    calls: list[tuple[int, int]]

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.tokenizer = tokenizer

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        self.calls.append((len(prompts), sampling.seed))
        drawn, found = Counter[int](), list[Completion]()
        for prompt in prompts:
            item = int(next(c for c in self.tokenizer.decode(prompt, skip_special_tokens=True) if c.isdigit()))
            right, number = drawn[item] < item, drawn[item]
            drawn[item] += 1
            text = str(item) if right else ("9", "?", "99", "9")[number]
            done: Any = "length" if text == "99" else "stop"
            found.append(Completion(self.tokenizer.encode(text), done))
        return found


@pytest.fixture
def golden(student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellResult:
    """The sampled cell of a task whose grader takes one answer at a time."""
    monkeypatch.setattr(SomeRight, "calls", [], raising=False)
    monkeypatch.setattr(hf_model, "HFEngine", SomeRight)
    grader = (
        "assert len(results) == 1 and isinstance(results[0], str), results; "
        'return {"strict": float(results[0] == doc["target"]), "parsed": float(results[0] != "?")}'
    )
    write_task(tmp_path / "task", grader=grader)
    settings = Evaluation.model_validate({"profiles": PROFILES, "seed": 77})
    return cells_of(student_folder, TaskLibrary([tmp_path / "task"]), settings, tmp_path, ["made_up"])[
        "made_up@sampled"
    ]


@pytest.mark.pitfall(
    "only the first of several answers is graded, so mean@n and pass@k come from different samples or from none",
    area="lm-eval",
    guard="`harness/evaluation/scoring.py` grades every answer and computes both figures from the same grades",
    evidence="every answer gets the grade of the first",
)
def test_mean_and_pass_at_k_are_worked_out_from_the_same_answers(golden: CellResult):
    # by hand from c = 0, 1, 2, 3, 4, 4 of n = 4: pass@2 = (0 + 3/6 + 5/6 + 1 + 1 + 1) / 6
    expected = {"mean@4": 14 / 24, "pass@1": 14 / 24, "pass@2": 13 / 18, "pass@4": 5 / 6, "strict": 14 / 24}
    assert golden.summary.score == pytest.approx(14 / 24)
    assert {k: v for k, v in golden.summary.metrics.items() if k != "parsed"} == pytest.approx(expected)
    assert (golden.summary.n, golden.summary.samples, golden.summary.pass_at) == (6, 4, (1, 2, 4))


def test_every_answer_has_a_row_and_an_outcome_of_its_own(golden: CellResult):
    rows = golden.samples
    assert rows["sample"].tolist() == [0, 1, 2, 3] * 6
    assert rows.groupby("item_id", sort=False)["score"].sum().tolist() == [0, 1, 2, 3, 4, 4]
    assert rows["outcome"].tolist()[:4] == ["wrong", "unparsed", "truncated", "wrong"]
    assert golden.summary.outcomes == {"correct": 14, "wrong": 5, "unparsed": 2, "truncated": 3}
    assert golden.summary.response_tokens_max == 2


def test_all_answers_come_from_one_call_whose_seed_is_recorded(golden: CellResult):
    assert SomeRight.calls == [(6, 77), (24, 77)]
    assert golden.summary.seed == 77
    assert golden.summary.keys.fields["settings"]["n"] == 4


def test_sampled_answers_vary_within_an_item_and_repeat_with_the_seed(
    student_folder: Path, library: TaskLibrary, tmp_path: Path
):
    first = cells_of(student_folder, library, evaluation(), tmp_path / "a")
    again = cells_of(student_folder, library, evaluation(), tmp_path / "b")
    sampled = first["tiny_weather@sampled"].samples
    assert sampled.groupby("item_id")["response"].nunique().max() > 1
    pd.testing.assert_frame_equal(sampled, again["tiny_weather@sampled"].samples)
    plain = cells_of(student_folder, library, Evaluation(limit=3, decoding=Decoding(max_gen_toks=24)), tmp_path / "c")
    pd.testing.assert_frame_equal(first["tiny_weather"].samples, plain["tiny_weather"].samples)
    assert first["tiny_weather"].summary.keys == plain["tiny_weather"].summary.keys


def test_another_pass_at_is_another_grading_of_the_same_answers(
    student_folder: Path, library: TaskLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = cells_of(student_folder, library, evaluation(sampled={**SAMPLED, "pass_at": []}), tmp_path)["tiny_weather"]
    monkeypatch.setattr(hf_model.HFEngine, "generate", lambda *_: pytest.fail("generated again"))
    second = cells_of(student_folder, library, evaluation(sampled=SAMPLED), tmp_path)["tiny_weather"]
    assert not any("pass@" in name for name in first.summary.metrics)
    assert {"pass@1", "pass@2", "pass@4"} <= set(second.summary.metrics)
    pd.testing.assert_frame_equal(first.samples, second.samples)


def profiled(folder: Path, profiles: dict[str, Any]) -> Suite:
    raw = micro_suite()
    raw["evaluation"]["profiles"] = profiles
    return load_suite(str(write_yaml(folder / "micro.yaml", raw)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A finished run of the micro suite with two profiles."""
    folder = tmp_path_factory.mktemp("profiled")
    spec = RunSpec(profiled(folder, PROFILES), "none", 0, out=folder / "runs")
    run(spec)
    return spec


def test_a_run_keeps_the_cells_of_every_profile(finished: RunSpec):
    assert is_finished(finished)
    for stage in ("stage_0", "stage_1_tiny_weather", "stage_2_tiny_currency"):
        names = {path.name for path in (finished.path / stage / "eval").iterdir()}
        assert names == {name for task in finished.suite.tasks for name in (task, f"{task}@sampled")}
    rows = pd.read_parquet(finished.path / "stage_0/eval/tiny_weather@sampled/samples.parquet")
    assert len(rows) == 4 * 4
    found = [json.loads((finished.path / f"stage_1_tiny_weather/eval/{name}/results.json").read_text()) for name in (
        "tiny_weather", "tiny_weather@sampled",
    )]  # fmt: skip
    assert [(results["profile"], results["stage"]) for results in found] == [("greedy", 1), ("sampled", 1)]
    lost = finished.path / "stage_0/eval/tiny_weather@sampled"
    lost.rename(lost.with_name(".away"))
    assert not is_finished(finished)
    lost.with_name(".away").rename(lost)


def test_the_order_of_profiles_is_part_of_a_runs_configuration(finished: RunSpec, tmp_path: Path):
    other = profiled(tmp_path, {"sampled": SAMPLED, "greedy": {}})
    with pytest.raises(RunError, match=r"differs in evaluation\.profiles\b"):
        run(RunSpec(other, "none", 0, out=finished.out))


@pytest.mark.usefixtures("blank_figures")
def test_reports_show_each_profile_in_a_matrix_of_its_own(finished: RunSpec, tmp_path: Path):
    frames = load_frames([finished.path])
    assert frames.profiles == ["sampled"]
    assert set(frames.under("sampled").scores["task"]) == set(finished.suite.tasks)
    assert [set(f.scores["answers"]) for f in (frames, frames.under("sampled"))] == [{4}, {16}]
    assert set(frames.under("sampled").scores["n"]) == {4}
    page = build_report([finished.path], tmp_path / "report")
    text = page.with_suffix(".md").read_text()
    assert "## Evaluation profile sampled" in text
    assert "pass@4 %" in text
    assert (page.parent / "tables" / "retention@sampled.csv").is_file()
    assert "Evaluation profile sampled" in page.read_text()


def test_all_answers_of_an_item_are_graded_again_one_by_one(finished: RunSpec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hf_model.HFEngine, "generate", lambda *_: pytest.fail("generated"))
    rows = {(row.stage, row.cell): row for row in regrade_runs([finished.path], "parsed", trust=True)}
    assert {cell for _, cell in rows} >= {"tiny_weather", "tiny_weather@sampled"}
    row = rows["stage_0", "tiny_weather@sampled"]
    (folder,) = (finished.path / "stage_0" / "regraded" / "tiny_weather@sampled").iterdir()
    before = pd.read_parquet(finished.path / "stage_0/eval/tiny_weather@sampled/samples.parquet")
    after = pd.read_parquet(folder / "samples.parquet")
    assert after["score"].tolist() == before["parsed"].tolist()
    assert (row.after, row.items) == (before["parsed"].mean(), 4)
    results = json.loads((folder / "results.json").read_text())
    assert {"mean@4", "pass@1", "pass@2", "pass@4"} <= set(results["metrics"])
    assert load_frames([finished.path], "parsed").under("sampled").scores["metric"].unique().tolist() == ["parsed"]


def test_foreign_checkpoints_give_a_matrix_for_each_profile(student_folder: Path, tmp_path: Path):
    suite = profiled(tmp_path, PROFILES)
    found = evaluate_checkpoints(suite, [student_folder], tmp_path / "out")
    assert list(found) == ["greedy", "sampled"]
    assert all(list(scores.columns) == list(suite.tasks) for scores in found.values())
    folder = tmp_path / "out" / "micro" / "checkpoints"
    assert (folder / "matrix.csv").is_file()
    assert (folder / "matrix@sampled.csv").is_file()
