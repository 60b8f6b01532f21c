"""The KL from the start: equal to dense logits in float64, at the same prompts and answers in all stages and methods."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness.config.evaluation import Evaluation
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ConfigError, ModelError
from harness.evaluation import drift
from harness.lm.checkpoints import load_checkpoint, save_checkpoint
from harness.pipeline.run import run
from harness.rundir.files import read_cell
from harness.rundir.records.cell_records import DriftSummary
from harness.rundir.store import is_finished
from tests.support.evaluation import with_config
from tests.support.models import dense_logprobs, micro_suite, write_yaml
from tests.support.runs import FOLDERS, changed_suite, manifest


def figures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / stage / "drift/results.json").read_text()) for stage in FOLDERS]


def rows(folder: Path, stage: str) -> pd.DataFrame:
    found = read_cell(folder / stage / "drift", DriftSummary)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def answered() -> list[drift.DriftAnswers]:
    """Sequences of unequal lengths over the micro student's vocabulary, an empty prompt remainder among them."""
    ids = [([5, 9, 17, 30], [40, 41, 2]), ([7], [8, 9]), ([11, 12, 13, 14, 15, 16], [17]), ([3, 4], [5, 6, 7, 8, 2])]
    return [drift.DriftAnswers("a" if i % 2 else "b", str(i), p, r, "stop", "", "") for i, (p, r) in enumerate(ids)]


def test_kl_and_entropy_are_those_of_dense_logits(
    answered: list[drift.DriftAnswers], student_folder: Path, teacher_folder: Path, micro: Suite,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(drift, "SEQUENCES", 3)
    original = drift.load_checkpoint

    def in_float64(folder: Path, spec: Any, device: str) -> Any:
        loaded = original(folder, spec, device)
        loaded.model.double()
        return loaded

    monkeypatch.setattr(drift, "load_checkpoint", in_float64)
    found = drift.measure_drift(student_folder, teacher_folder, micro.student, "cpu", answered, same=False)
    start, current = (in_float64(folder, micro.student, "cpu").model for folder in (student_folder, teacher_folder))
    for row, item in zip(found.to_dict("records"), answered, strict=True):
        with torch.no_grad():
            p, q = (dense_logprobs(model, item.prompt_ids + item.response_ids)[:-1] for model in (start, current))
        first = len(item.prompt_ids) - 1
        kl = (p.exp() * (p - q)).sum(-1)[first:].mean()
        entropy = -(q.exp() * q).sum(-1)
        assert row["kl_to_start"] == pytest.approx(float(kl), abs=1e-6, rel=1e-6)
        assert row["kl_to_start"] > 0.01
        assert row["entropy"] == pytest.approx(float(entropy[first:].mean()), abs=1e-6)
        if first:
            assert row["entropy_prompt"] == pytest.approx(float(entropy[:first].mean()), abs=1e-6)
        assert (row["prompt_tokens"], row["response_tokens"]) == (len(item.prompt_ids), len(item.response_ids))


@pytest.mark.parametrize("same", [True, False])
def test_the_start_is_at_no_distance_from_itself(
    same: bool, answered: list[drift.DriftAnswers], student_folder: Path, micro: Suite
):
    found = drift.measure_drift(student_folder, student_folder, micro.student, "cpu", answered, same=same)
    assert found["kl_to_start"].abs().max() <= 1e-6
    assert (found["entropy"] > 0).all()


def test_a_task_counts_by_its_items_and_the_whole_by_its_tasks(answered: list[drift.DriftAnswers]):
    table = pd.DataFrame(
        [("b", 1.0), ("a", 2.0), ("b", 3.0), ("b", 5.0)], columns=pd.Index(["task", "kl_to_start"])
    ).assign(entropy=1.0, entropy_prompt=float("nan"))
    found = drift.summarise_drift(table, answered, drift.Drift(), 0.0)
    assert found.tasks["b"].kl_to_start == pytest.approx(3.0)
    assert found.kl_to_start == pytest.approx((3.0 + 2.0) / 2)


def test_a_run_measures_every_stage_at_the_starts_own_answers(aopd: Path):
    found = figures(aopd)
    assert len({stage["answers"] for stage in found}) == 1
    assert found[0]["kl_to_start"] == pytest.approx(0, abs=1e-6)
    assert all(stage["kl_to_start"] > 0 for stage in found[1:])
    assert [stage["stage"] for stage in found] == [0, 1, 2]
    weights = manifest(aopd)["weights"]
    assert [stage["weights"] for stage in found] == [weights[name] for name in ("start", "stage_1", "stage_2")]
    start = rows(aopd, "stage_0")
    assert start["task"].value_counts().to_dict() == {"tiny_weather": 4, "tiny_currency": 4, "tiny_reminder": 4}
    assert (start["response_ids"].map(len) == start["response_tokens"]).all()
    asked = pd.read_parquet(aopd / "stage_0/eval/tiny_weather/samples.parquet")
    ours = start[start["task"] == "tiny_weather"]
    assert ours["prompt"].tolist() == asked["prompt"].tolist()
    assert ours["item_id"].tolist() == asked["item_id"].tolist()
    later = rows(aopd, FOLDERS[2])
    assert later["item_id"].tolist() == start["item_id"].tolist()
    assert "prompt" not in later


@pytest.mark.slow
def test_methods_from_one_start_are_measured_at_the_same_answers(aopd: Path, opd: Path, control: Path):
    for stage in range(3):
        assert len({figures(run_)[stage]["answers"] for run_ in (aopd, opd, control)}) == 1
    assert figures(aopd)[0]["entropy"] == figures(opd)[0]["entropy"]
    assert figures(aopd)[2]["kl_to_start"] != figures(opd)[2]["kl_to_start"]
    assert [stage["kl_to_start"] for stage in figures(control)] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_run_that_lacks_a_measurement_gets_it_and_no_more(micro: Suite, out: Path, control: Path, tmp_path: Path):
    spec = RunSpec(micro, "none", 0, out=tmp_path)
    shutil.copytree(control, spec.path)
    assert is_finished(spec)
    for stage in FOLDERS:
        shutil.rmtree(spec.path / stage / "drift")
    before = (spec.path / "stage_1_tiny_weather/train/done.json").stat().st_mtime_ns
    assert not is_finished(spec)
    run(spec)
    assert is_finished(spec)
    assert [stage["answers"] for stage in figures(spec.path)] == [stage["answers"] for stage in figures(control)]
    assert (spec.path / "stage_1_tiny_weather/train/done.json").stat().st_mtime_ns == before
    assert not [name for name in (tmp_path / "evaluations").iterdir() if name.is_dir() and "start-" not in name.name]


@pytest.mark.slow
def test_a_start_with_the_same_tensors_and_another_configuration_answers_itself(
    micro: Suite, student_folder: Path, tmp_path: Path
):
    other = with_config(student_folder, tmp_path / "other", rms_norm_eps=5.0)
    found = list[dict[str, Any]]()
    for number, folder in enumerate((student_folder, other)):
        pretrained = {
            "kind": "pretrained",
            "path": str(folder),
            "dtype": "float32",
            "chat": micro.student.chat.model_dump(),
        }
        suite = Suite.model_validate({**micro.model_dump(), "name": f"m{number}", "student": pretrained})
        found.append(figures(run(RunSpec(suite, "none", 0, out=tmp_path)))[0])
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["answers"] != found[1]["answers"]


def test_a_suite_can_turn_it_off_and_others_keep_their_hash(tmp_path: Path):
    plain = load_suite(str(write_yaml(tmp_path / "micro.yaml", micro_suite())))
    assert plain.evaluation.drift is not None
    assert set(plain.evaluation.model_dump()) == {"limit", "batch_size", "decoding", "seed"}
    off = changed_suite(tmp_path, lambda raw: raw["evaluation"].update(drift=None))
    assert "drift" in off.evaluation.model_dump()
    spec = RunSpec(off, "none", 0, out=tmp_path)
    run(spec)
    assert is_finished(spec)
    assert not (spec.path / "stage_0/drift").exists()
    assert Evaluation.model_validate({"drift": {"items": 3}}).model_dump()["drift"]["items"] == 3


def test_another_vocabulary_is_refused(
    answered: list[drift.DriftAnswers], student_folder: Path, micro: Suite, tmp_path: Path
):
    loaded = load_checkpoint(student_folder, micro.student, "cpu")
    loaded.model.resize_token_embeddings(len(loaded.renderer.tokenizer) + 8)
    save_checkpoint(loaded, tmp_path / "wider")
    with pytest.raises(ModelError, match=r"wider has \d+ rows .*evaluation\.drift: null"):
        drift.measure_drift(student_folder, tmp_path / "wider", micro.student, "cpu", answered, same=False)


@pytest.mark.pitfall(
    "a noise floor that is measured with one seed is zero",
    area="lm-eval",
    guard="`harness/pipeline/evaluate_stage.py` evaluates the start again with a different seed each time",
    evidence="each repeat has the suite's seed",
)
def test_noise_of_the_start_is_measured_where_answers_are_sampled(tmp_path: Path):
    profiles = {"greedy": {}, "sampled": {"temperature": 1.0, "n": 2}}
    suite = changed_suite(tmp_path, lambda raw: raw["evaluation"].update(noise_floor=2, profiles=profiles))
    spec = RunSpec(suite, "none", 0, out=tmp_path)
    run(spec)
    noise = spec.path / "stage_0" / "noise"
    cells = {f"{task}@sampled" for task in ("tiny_weather", "tiny_currency", "tiny_reminder")}
    assert {path.name for path in noise.iterdir()} == cells
    found = [read_cell(noise / "tiny_weather@sampled" / repeat) for repeat in ("1", "2")]
    answers = [cell[1]["response"].tolist() for cell in found if cell is not None]
    first = pd.read_parquet(spec.path / "stage_0/eval/tiny_weather@sampled/samples.parquet")["response"].tolist()
    assert len(answers) == 2
    assert answers[0] != answers[1]
    assert first not in answers
    assert not (spec.path / FOLDERS[1] / "noise").exists()
    assert is_finished(spec)
    shutil.rmtree(noise / "tiny_weather@sampled" / "2")
    assert not is_finished(spec)


def test_noise_of_greedy_answers_is_refused(tmp_path: Path):
    suite = changed_suite(tmp_path, lambda raw: raw["evaluation"].update(noise_floor=2))
    with pytest.raises(ConfigError, match=r"noise_floor is 2 .*no profile samples"):
        run(RunSpec(suite, "none", 0, out=tmp_path))
