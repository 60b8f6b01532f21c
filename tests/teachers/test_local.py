"""Teachers that are models of this process: padding rows may differ, contexts are checked before the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from harness.config.base import digest
from harness.config.models import Chat, Pretrained
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.config.teacher_identity import CONFIGURATION, full_identity, same_teacher, weights_part
from harness.errors import ModelError, RunError, TrainingError
from harness.lm.checkpoints import Loaded, config_digest, save_checkpoint, weights_digest
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import make_batches
from harness.pipeline.run import run
from harness.teachers.local import LocalTeacher, open_local
from harness.teachers.routed import RoutedTeacher
from harness.teachers.score_checks import check_scores, refuse_certainty
from tests.support.evaluation import with_config
from tests.support.models import STOP, FakeTokenizer, byte_renderer, dense_logprobs, local_teacher, qwen3, rollout
from tests.support.runs import StoppedError, changed_suite, manifest, stop_at, vouch


def saved(folder: Path, rows: int, seed: int) -> Loaded:
    """Save a model whose output layer has some rows, over the bytes' tokenizer, and return it."""
    loaded = Loaded(qwen3(rows, seed=seed, dtype=torch.float32), byte_renderer())
    save_checkpoint(loaded, folder)
    return loaded


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(264, 300), (300, 264)])
def test_padding_rows_of_student_and_teacher_may_differ(
    student_rows: int, teacher_rows: int, tie: bool, tmp_path: Path
):
    tokens = len(byte_renderer().tokenizer)
    assert tokens < min(student_rows, teacher_rows)
    student = saved(tmp_path / "student", student_rows, 0)
    own = qwen3(teacher_rows, seed=1, tie=tie, dtype=torch.float32)
    save_checkpoint(Loaded(own, byte_renderer()), tmp_path / "teacher")
    spec = Pretrained(kind="pretrained", path=str(tmp_path / "teacher"), chat=Chat(template="chatml"))
    teacher = open_local(spec, tmp_path / "teacher", student, "cpu")
    (batch,) = make_batches([rollout([5, 6, 7], [8, 9, 10])], "token_mean", None)
    found = teacher.score(batch, TeacherRequest(top_k=4, vocabulary=True), 1.0)
    assert found.rows is not None
    rows = found.rows(slice(None))
    assert rows.shape == (3, student_rows)
    assert int(found.top_ids.max()) < student_rows
    # Over the tokenizer's own tokens the distribution is the teacher's, with any mass on padding.
    logits = own(input_ids=batch.input_ids).logits[0, 2:5, :tokens]
    torch.testing.assert_close(rows[:, :tokens].log_softmax(-1), logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(3))
    added = rows[:, teacher_rows:].exp().sum(-1)
    assert float(added.max() if added.numel() else 0) <= max(0, student_rows - teacher_rows) / teacher_rows


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_teacher_that_prefers_no_token_is_refused_before_it_teaches(value: float, tmp_path: Path):
    student = saved(tmp_path / "student", 264, 0)
    own = qwen3(264, seed=1, tie=False, dtype=torch.float32)
    torch.nn.init.constant_(own.get_output_embeddings().weight, value)
    save_checkpoint(Loaded(own, byte_renderer()), tmp_path / "teacher")
    spec = Pretrained(kind="pretrained", path=str(tmp_path / "teacher"), chat=Chat(template="chatml"))
    with pytest.raises(ModelError):
        open_local(spec, tmp_path / "teacher", student, "cpu")


def test_a_teacher_with_the_same_tensors_and_another_configuration_is_another_teacher(tmp_path: Path):
    student = saved(tmp_path / "teacher", 264, 0)
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    folders = [tmp_path / "teacher", with_config(tmp_path / "teacher", tmp_path / "other", **rotary)]
    specs = [Pretrained(kind="pretrained", path=str(folder), chat=Chat(template="chatml")) for folder in folders]
    one, other = (open_local(spec, folder, student, "cpu") for spec, folder in zip(specs, folders, strict=True))
    assert {weights_part(teacher.identity) for teacher in (one, other)} == {weights_digest(folders[0])}
    assert not same_teacher(one.identity, other.identity)
    routed = [RoutedTeacher({"a": one, "b": teacher}, None) for teacher in (one, other)]
    assert not same_teacher(*(teacher.identity for teacher in routed))
    before = {task: weights_digest(folders[0]) for task in ("a", "b")}
    assert {weights_part(teacher.identity) for teacher in routed} == {digest([before, ""])}


def test_a_run_goes_on_with_the_same_teacher_alone(micro: Suite, teacher_folder: Path, tmp_path: Path):
    folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
    suite = changed_suite(tmp_path, lambda raw: raw.update(teacher={"kind": "pretrained", "path": str(folder)}))
    spec = RunSpec(suite, "opd", 0, out=tmp_path / "runs")
    with pytest.raises(StoppedError):
        run(spec, stop_at("stage 2 tiny_currency 1"))
    own = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps({**json.loads(own), "rms_norm_eps": 5.0}))
    with pytest.raises(RunError, match="teacher changed"):
        run(spec)
    (folder / "config.json").write_text(own)
    # As an earlier version left it.
    for name in ("manifest.json", "stage_1_tiny_weather/train/done.json"):
        text = (spec.path / name).read_text()
        (spec.path / name).write_text(re.sub(f"{CONFIGURATION}[0-9a-f]+", "", text))
        assert (spec.path / name).read_text() != text
        vouch(spec.path / name)
    run(spec)
    expected = full_identity(weights_digest(folder), config_digest(folder))
    assert manifest(spec.path)["weights"]["teacher"] == expected


def test_rows_that_hold_tokens_are_not_cut(tmp_path: Path):
    tokens = len(byte_renderer().tokenizer)
    student = saved(tmp_path / "student", tokens, 0)
    spec = Pretrained(kind="pretrained", path=str(tmp_path / "student"), chat=Chat(template="chatml"))
    short = Loaded(qwen3(tokens - 1, dtype=torch.float32), student.renderer)
    with pytest.raises(ModelError, match=f"{tokens} and {tokens - 1} rows"):
        open_local(spec, tmp_path / "student", short, "cpu")


def test_a_teacher_that_cannot_read_a_prompt_with_its_response_is_refused_before_the_run(micro: Suite, tmp_path: Path):
    teacher = micro.model_dump()["teacher"]
    narrow = {**teacher, "architecture": {**teacher["architecture"], "context": 32}}
    spec = RunSpec(Suite.model_validate({**micro.model_dump(), "teacher": narrow}), "opd", 0, out=tmp_path)
    with pytest.raises(ModelError, match=r"stage tiny_weather .*\b32 tokens, .*prompt of tiny_weather"):
        run(spec)
    assert not (spec.path / "stage_0").exists()


@pytest.mark.pitfall(
    "a teacher with a different vocabulary scores other text than the student wrote",
    area="lm-eval",
    guard="`harness/teachers/local.py` refuses such a teacher, and scores the student's exact token ids",
    evidence="the vocabularies are not compared",
)
def test_a_teacher_with_another_vocabulary_is_refused():
    with pytest.raises(ModelError, match=r"vocabulary \(25 and 24 tokens\)"):
        LocalTeacher(qwen3(25), FakeTokenizer(25), FakeTokenizer(24))


def test_a_teacher_whose_score_is_not_finite_stops_the_run():
    model = qwen3()
    model.lm_head.weight.data[3] = float("nan")
    (batch,) = make_batches([rollout([1, 2], [4, STOP])], "token_mean", None)
    scores = LocalTeacher(model, FakeTokenizer(), FakeTokenizer()).score(batch, TeacherRequest(), 1.0)
    with pytest.raises(TrainingError, match=r"not finite; .*weights"):
        check_scores(scores, batch, TeacherRequest())


def test_more_teacher_tokens_than_the_vocabulary_has_are_refused():
    (batch,) = make_batches([rollout([1, 2], [4, STOP])], "token_mean", None)
    with pytest.raises(TrainingError, match=r"top_k is 25, .*\b24 tokens"):
        local_teacher().score(batch, TeacherRequest(top_k=25), 1.0)


def test_a_local_teacher_scores_as_its_dense_distribution_and_takes_no_gradient():
    teacher = local_teacher()
    sequence = rollout([1, 2, 3], [4, 5, STOP])
    (batch,) = make_batches([sequence], "token_mean", None)
    scores: TeacherScores = teacher.score(batch, TeacherRequest(top_k=4), 0.8)
    logp = dense_logprobs(teacher.model, sequence.prompt_and_response, 0.8)[2:-1]
    torch.testing.assert_close(scores.sampled, logp[range(3), sequence.response])
    torch.testing.assert_close(scores.top_logprobs, logp.topk(4).values)
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_a_response_that_the_teacher_did_not_score_stops_the_step_and_short_certain_ones_do_not():
    rollouts = [rollout([1, 2], [4] * 8), rollout([1], [5] * 7), rollout([3], [6, STOP])]
    (batch,) = make_batches(rollouts, "token_mean", None)
    scores = torch.full((17,), -1e-7)
    scores[1:-1] = 0.0  # all but two tokens, among them a whole response of seven, of which a teacher may be certain
    refuse_certainty([(batch, scores)])
    scores[0] = 0.0
    with pytest.raises(TrainingError, match=r"all 8 tokens .*item item of fake"):
        refuse_certainty([(batch, scores)])
