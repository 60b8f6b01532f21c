"""Run directories are found and read as tidy frames, finished or not; what cannot be used is named."""

import json
import math
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.app import main
from harness.errors import RunError
from reports.data.frames import find_runs, load_frames
from tests.support.reports.run_factory import HOSTILE, SCORES, write_run
from tests.support.runs import vouch


@pytest.mark.parametrize("below", [".", "tiny", "tiny/aopd", "tiny/aopd/default/seed0"])
def test_runs_are_found_from_any_folder_above_them(tmp_path: Path, below: str):
    run = write_run(tmp_path)
    assert [found.path.resolve() for found in find_runs([tmp_path / below])] == [run.resolve()]


def test_overlapping_paths_give_each_run_once_controls_first(tmp_path: Path):
    for adapter in ("zeta", "aopd", "none", "opd"):
        write_run(tmp_path, adapter)
    runs = find_runs([tmp_path, tmp_path / "tiny", tmp_path / "tiny" / "opd"])
    assert [run.adapter for run in runs] == ["none", "opd", "aopd", "zeta"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_path_without_a_run_is_named(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=f"No run at .*{name}; expected"):
        find_runs([tmp_path / name])


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "not valid JSON"), ('{"schema": 1}', "schema 1, expected 3"), ('{"schema": 2}', "suite: missing")],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, text: str, problem: str):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=f"manifest.json.*{problem}"):
        find_runs([tmp_path])


def test_one_run_in_two_places_is_refused(tmp_path: Path):
    write_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(RunError, match="leave one out"):
        find_runs([tmp_path])


def test_runs_of_one_order_with_other_stages_are_refused(tmp_path: Path):
    write_run(tmp_path, "opd")
    write_run(tmp_path, "aopd", stages=("tiny_weather", "tiny_arithmetic"))
    with pytest.raises(RunError, match="order default; report them apart"):
        find_runs([tmp_path])


def test_scores_hold_one_row_per_expected_cell(tmp_path: Path):
    write_run(tmp_path, evaluated=4)
    scores = load_frames([tmp_path]).scores
    assert len(scores) == 9
    assert scores["score"].head(4).tolist() == [0.5, 0.1, 0.6, 0.8]
    assert scores["score"].tail(5).isna().all()
    assert scores.loc[scores["own"], ["stage", "task"]].to_numpy().tolist() == [
        [1, "tiny_arithmetic"],
        [2, "tiny_weather"],
    ]
    assert set(scores.loc[scores["role"] == "probe", "task"]) == {"tiny_long_sums"}
    assert scores["n"].tolist() == [10] * 4 + [0] * 5


def test_every_metric_of_a_cell_is_kept_in_long_form(tmp_path: Path):
    write_run(tmp_path)
    metrics = load_frames([tmp_path]).metrics
    cell = metrics[(metrics["stage"] == 1) & (metrics["task"] == "tiny_arithmetic")]
    assert dict(zip(cell["metric"], cell["value"], strict=True)) == pytest.approx({"strict": 0.8, "lenient": 0.85})


def test_steps_of_all_runs_share_an_axis_that_the_longest_run_sets(tmp_path: Path):
    write_run(tmp_path, "opd", steps=3)
    write_run(tmp_path, "aopd", steps=4)
    steps = load_frames([tmp_path]).steps
    firsts = steps[steps["step"] == 0].groupby(["adapter", "stage"])["global_step"].first()
    assert firsts.to_dict() == {("aopd", 1): 0, ("aopd", 2): 4, ("opd", 1): 0, ("opd", 2): 4}
    assert steps["seconds_generate"].sum() == pytest.approx(0.25 * 14)


def test_what_an_adapter_does_not_log_is_nan_and_the_control_has_no_steps(tmp_path: Path):
    write_run(tmp_path, "none")
    assert load_frames([tmp_path]).steps.empty
    write_run(tmp_path, "sft")
    steps = load_frames([tmp_path]).steps
    assert set(steps["adapter"]) == {"sft"}
    assert steps[["advantage_mean", "advantage_q05", "routed_fkl"]].isna().all(axis=None)


def test_warnings_are_rows_and_old_logs_have_none(tmp_path: Path):
    log = write_run(tmp_path) / "stage_2_tiny_weather" / "train" / "steps.jsonl"
    assert load_frames([tmp_path]).warnings.empty
    log.write_text(log.read_text() + json.dumps({"step": 4, "warnings": ["a", "b"]}) + "\n")
    raised = load_frames([tmp_path]).warnings
    assert raised[["stage", "step", "warning"]].to_numpy().tolist() == [[2, 4, "a"], [2, 4, "b"]]


def test_a_half_written_last_line_waits_and_a_broken_one_before_it_is_an_error(tmp_path: Path):
    log = write_run(tmp_path) / "stage_1_tiny_arithmetic" / "train" / "steps.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "lo')
    assert len(load_frames([tmp_path]).steps) == 8
    log.write_text(log.read_text() + '\n{"step": 5}\n')
    with pytest.raises(RunError, match="line 5 is not valid JSON"):
        _ = load_frames([tmp_path]).steps


def test_a_step_that_was_done_again_counts_once(tmp_path: Path):
    log = write_run(tmp_path) / "stage_1_tiny_arithmetic" / "train" / "steps.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 3, "entropy": 9.0}) + "\n")
    steps = load_frames([tmp_path]).steps
    again = steps[(steps["stage"] == 1) & (steps["step"] == 3)]
    assert again["entropy"].tolist() == [9.0]


def test_cells_that_are_not_comparable_are_refused(tmp_path: Path):
    write_run(tmp_path, "opd")
    write_run(tmp_path, "aopd", comparability="c1")
    with pytest.raises(RunError, match=r"opd seed 0 after stage 0 \(n = 10, key c0\) and aopd .*key c1"):
        _ = load_frames([tmp_path]).scores


def change_keys(run: Path, **fields) -> None:
    for file in run.glob("stage_*/eval/*/results.json"):
        results = json.loads(file.read_text())
        results["keys"] |= {"comparability": str(fields), "fields": fields}
        file.write_text(json.dumps(results))
        vouch(file)


def test_a_refusal_names_the_fields_that_differ_and_the_command_that_fixes_it(tmp_path: Path):
    one, other = write_run(tmp_path, "opd"), write_run(tmp_path, "aopd")
    settings = {"max_gen_toks": 24, "until": ["x"]}
    change_keys(one, settings=settings, versions={"torch": "2.13.0"}, grading="g1")
    change_keys(other, settings={**settings, "max_gen_toks": 9}, versions={"torch": "2.14.0"}, grading="g1")
    with pytest.raises(RunError) as error:
        _ = load_frames([tmp_path]).scores
    said = str(error.value)
    assert "settings.max_gen_toks (24 and 9), versions.torch (2.13.0 and 2.14.0) differ; " in said
    assert f"remove {one}/stage_*/eval {other}/stage_*/eval " in said
    assert said.endswith(": harness run tiny --adapter opd --seed 0 && harness run tiny --adapter aopd --seed 0")
    change_keys(other, settings=settings, versions={"torch": "2.13.0"}, grading="g2")
    with pytest.raises(RunError) as error:
        _ = load_frames([tmp_path]).scores
    assert "grading (g1 and g2) differs; " in str(error.value)
    assert str(error.value).endswith(f": harness regrade {one} {other}")


def change_manifest(run: Path, **changes) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    first = manifest["sessions"][0] | {name: changes.pop(name) for name in ("command",) if name in changes}
    (run / "manifest.json").write_text(json.dumps(manifest | {"sessions": [first]} | changes))
    vouch(run / "manifest.json")


def test_a_refusal_names_the_checkpoints_of_runs_that_are_configured_to_evaluate_differently(tmp_path: Path):
    one, other = write_run(tmp_path, "opd"), write_run(tmp_path, "aopd", evaluated=3)
    for run, budget in ((one, 24), (other, 9)):
        change_keys(run, settings={"max_gen_toks": budget})
        config = {"evaluation": {"decoding": {"max_gen_toks": budget}}}
        change_manifest(
            run, config=config, command="harness sweep my/tiny.yaml --seed 0", start_checkpoint=f"/at/{run.name}"
        )
    with pytest.raises(RunError) as error:
        _ = load_frames([tmp_path]).scores
    assert str(error.value).endswith(
        f": harness evaluate --suite my/tiny.yaml --checkpoints {one}/stage_2_tiny_weather/train/checkpoint /at/seed0"
    )


def refusal_at(folder: Path, **changes) -> str:
    one, other = write_run(folder, "opd"), write_run(folder, "aopd")
    change_keys(one, settings={"max_gen_toks": 24})
    change_keys(other, settings={"max_gen_toks": 9})
    for run in (one, other):
        change_manifest(run, **changes)
    with pytest.raises(RunError) as error:
        _ = load_frames([folder]).scores
    return str(error.value)


def test_the_command_that_a_refusal_names_can_be_pasted_where_a_folder_has_a_space(tmp_path: Path):
    folder = tmp_path / "my runs"
    refusal = refusal_at(folder, command="harness run 'my suite.yaml' --seed 0")
    assert f"remove '{folder}/tiny/opd/default/seed0'/stage_*/eval " in refusal
    assert refusal.endswith(": harness run 'my suite.yaml' --seed 0")
    one, other = (folder / f"tiny/{adapter}/default/seed0" for adapter in ("opd", "aopd"))
    change_manifest(one, config={"evaluation": {"limit": 3}})
    last = "stage_2_tiny_weather/train/checkpoint"
    with pytest.raises(RunError, match=rf"--suite 'my suite.yaml' --checkpoints '{one}/{last}' '{other}/{last}'$"):
        _ = load_frames([folder]).scores
    change_keys(other, settings={"max_gen_toks": 24})
    with pytest.raises(RunError, match=rf"harness regrade '{one}' '{other}' --grader sdft$"):
        load_frames([one, other], "sdft")


def test_a_command_that_no_shell_can_read_does_not_fail_a_report(tmp_path: Path):
    refusal = refusal_at(tmp_path, command="harness run o'brien.yaml")
    assert refusal.endswith(f"harness run tiny --adapter aopd --seed 0 --order default --out {tmp_path}")


@pytest.fixture
def damaged(micro_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_figures: None) -> Path:
    """Two finished runs of the micro suite, one of them evaluated by another version of torch, as its keys say."""
    for adapter in ("none", "sft"):
        command(monkeypatch, "run", str(micro_file), "--adapter", adapter, "--seed", "0", "--out", str(tmp_path))
    for file in tmp_path.glob("micro/sft/default/seed0/stage_*/eval/*/results.json"):
        results = json.loads(file.read_text())
        results["keys"]["fields"]["versions"]["torch"] = "1.0"
        results["keys"]["comparability"] = "another"
        file.write_text(json.dumps(results))
        vouch(file)
    shutil.rmtree(tmp_path / "evaluations")
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


@pytest.mark.slow
def test_the_command_that_a_refusal_names_fixes_it(damaged: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RunError) as error:
        _ = load_frames([damaged / "micro"]).scores
    removed, commands = str(error.value).split("remove ")[1].split(" and evaluate them again with the same settings: ")
    for pattern in removed.split():
        for folder in damaged.glob(str(Path(pattern).relative_to(damaged))):
            shutil.rmtree(folder)
    for line in commands.split(" && "):
        command(monkeypatch, *shlex.split(line)[1:])
    assert load_frames([damaged / "micro"]).scores["score"].notna().all()


@pytest.mark.slow
def test_the_named_checkpoints_are_evaluated_in_one_matrix(damaged: Path, monkeypatch: pytest.MonkeyPatch):
    change_manifest(damaged / "micro/sft/default/seed0", config={"evaluation": {"limit": 3}})
    for file in damaged.glob("micro/sft/default/seed0/stage_[12]*/eval/*/results.json"):
        file.unlink()
    with pytest.raises(RunError) as error:
        _ = load_frames([damaged / "micro"]).scores
    line = str(error.value).split("in one matrix: ")[1]
    command(monkeypatch, *shlex.split(line)[1:], "--out", str(damaged))
    # The start is the checkpoint of both: sft lacks the cells of its stages, and the control trains nothing.
    named = line.split(" --checkpoints ")[1].split()
    assert len(pd.read_csv(damaged / "micro/checkpoints/matrix.csv")) == len(named) == 1


def test_labels_say_what_differs_between_runs(tmp_path: Path):
    write_run(tmp_path)
    assert load_frames([tmp_path]).labels == ["aopd"]
    write_run(tmp_path, order="reversed", stages=("tiny_weather", "tiny_arithmetic"), start=None)
    assert load_frames([tmp_path]).labels == ["aopd, default, weak", "aopd, reversed, -"]


def test_samples_are_read_per_task_with_their_run_and_stage(tmp_path: Path):
    write_run(tmp_path)
    samples = load_frames([tmp_path]).samples("tiny_weather")
    assert samples.groupby("stage")["score"].mean().tolist() == pytest.approx([row[1] for row in SCORES])
    assert samples["response"].unique().tolist() == [HOSTILE]
    with pytest.raises(RunError, match="No stored answers on 'absent'"):
        load_frames([tmp_path]).samples("absent")


def test_a_start_without_a_name_does_not_drop_the_run(tmp_path: Path):
    write_run(tmp_path, start=None)
    scores = load_frames([tmp_path]).scores
    assert len(scores.groupby("start")) == 1
    assert not math.isnan(scores["score"].iloc[0])
