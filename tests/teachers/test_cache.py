"""Scores on disk: written as a run goes, read without any teacher, and found only by what they depend on."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.teacher_identity import full_identity
from harness.config.teacher_settings import read_teacher
from harness.errors import ConfigError, TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch, make_batches
from harness.pipeline.resources import refuse_teachers
from harness.pipeline.run import run
from harness.pipeline.teacher_cache import fill_cache
from harness.rundir.process.progress import silent
from harness.teachers.cache import Cache, CachedTeacher
from harness.teachers.local import LocalTeacher
from harness.teachers.routed import RoutedTeacher
from harness.teachers.score_store import ScoreStore, StoredScores
from harness.teachers.server import Server
from harness.teachers.teacher import TeacherSite
from harness.teachers.teacher_pool import TeacherPool
from tests.support.models import STOP, FakeTokenizer, local_teacher, micro_suite, qwen3, rollout, write_yaml
from tests.support.servers.fake_server import FakeServer, serving
from tests.support.servers.teachers import random_batches

ROLLOUTS = [rollout([3, 4, 5], [6, 7, STOP]), rollout([8], [9, STOP]), rollout([3, 1], [4, 1, 5, 9, STOP])]
REQUEST = TeacherRequest(top_k=3, entropy=True)


@pytest.fixture
def batch() -> Batch:
    return make_batches(ROLLOUTS, "sequence_mean", None)[0]


def cached(path: Path, behind: Any = None, identity: str = "teacher") -> CachedTeacher:
    return CachedTeacher(ScoreStore(path), identity, behind)


def equal(found: TeacherScores, expected: TeacherScores) -> bool:
    names = ["sampled", "top_ids", "top_logprobs", *(["entropy"] if expected.entropy is not None else [])]
    return all(torch.allclose(getattr(found, n).double(), getattr(expected, n).double(), atol=1e-6) for n in names)


def test_a_cache_returns_what_the_teacher_returned_and_then_needs_none(tmp_path: Path, batch: Batch):
    teacher = local_teacher()
    expected = teacher.score(batch, REQUEST, 1.0)
    filled = cached(tmp_path / "scores.db", teacher)
    assert equal(filled.score(batch, REQUEST, 1.0), expected)
    assert (filled.hits, filled.misses) == (0, 3)
    alone = cached(tmp_path / "scores.db")
    assert equal(alone.score(batch, REQUEST, 1.0), expected)
    assert equal(alone.score(batch, TeacherRequest(top_k=1), 1.0), teacher.score(batch, TeacherRequest(top_k=1), 1.0))
    one = make_batches(ROLLOUTS[:1], "sequence_mean", None)[0]
    assert equal(alone.score(one, REQUEST, 1.0), teacher.score(one, REQUEST, 1.0))


def test_scores_of_something_else_are_not_used(tmp_path: Path, batch: Batch):
    path = tmp_path / "scores.db"
    cached(path, local_teacher()).score(batch, REQUEST, 1.0)
    changed = make_batches([replace(ROLLOUTS[0], response=[6, 7, 7])], "sequence_mean", None)[0]
    for reader, asked, request, temperature in (
        (cached(path), changed, REQUEST, 1.0),
        (cached(path, identity="other"), batch, REQUEST, 1.0),
        (cached(path), batch, REQUEST, 0.5),
        (cached(path), batch, TeacherRequest(top_k=4), 1.0),
    ):
        with pytest.raises(TrainingError, match="lacks the scores of"):
            reader.score(asked, request, temperature)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TrainingError, match="lacks the scores of"):
        cached(path).score(batch, REQUEST, 1.0)


def test_a_wrong_score_is_not_written(tmp_path: Path, batch: Batch):
    class Broken:
        computes_in = "float32"

        def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
            right = local_teacher().score(batch, request, temperature)
            return replace(right, sampled=torch.full_like(right.sampled, -100.0))

    with pytest.raises(TrainingError, match=r"contradicts|placeholder"):
        cached(tmp_path / "scores.db", Broken()).score(batch, REQUEST, 1.0)
    assert ScoreStore(tmp_path / "scores.db").teachers() == {}


def test_a_file_that_is_not_a_cache_or_holds_several_teachers_is_refused(tmp_path: Path, batch: Batch):
    path = tmp_path / "scores.db"
    kind = Cache.model_validate({"kind": "cache", "path": str(path)})
    with pytest.raises(ConfigError, match="holds no scores"):
        kind.check()
    for identity in ("first", "second"):
        cached(path, local_teacher(), identity).score(batch, REQUEST, 1.0)
    with pytest.raises(ConfigError, match="first, second"):
        kind.check()
    student: Any = None
    chosen = kind.model_copy(update={"identity": "second"}).open(student, TeacherSite("cpu", tmp_path))
    assert chosen.identity == "second"
    path.write_text("not a database, and long enough to be read as one" * 40)
    with pytest.raises(TrainingError, match="cannot be used as a cache"):
        cached(path).score(batch, REQUEST, 1.0)


def test_a_teacher_other_than_the_one_that_the_suite_names_is_refused(tmp_path: Path):
    teacher = micro_suite()["teacher"]
    kind = Cache.model_validate(
        {"kind": "cache", "path": str(tmp_path / "scores.db"), "identity": "first", "of": teacher}
    )
    student: Any = None
    with pytest.raises(ConfigError, match=r"teacher\.identity is 'first', .*teacher\.of\b"):
        kind.open(student, TeacherSite("cpu", tmp_path, lambda *_: local_teacher()))


def test_a_row_with_fewer_tokens_replaces_none_with_more(tmp_path: Path, batch: Batch):
    """As after the fillings for two methods: the second asks for fewer tokens and for the entropy."""
    teacher = local_teacher()
    cached(tmp_path / "scores.db", teacher).score(batch, TeacherRequest(top_k=5), 1.0)
    cached(tmp_path / "scores.db", teacher).score(batch, TeacherRequest(top_k=2, entropy=True), 1.0)
    alone = cached(tmp_path / "scores.db")
    for request in (TeacherRequest(top_k=5), TeacherRequest(top_k=2, entropy=True)):
        assert equal(alone.score(batch, request, 1.0), teacher.score(batch, request, 1.0))
    store = ScoreStore(tmp_path / "scores.db")
    one = StoredScores(torch.zeros(1), torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4))
    store.put("other", {"key": one})
    store.put("other", {"key": StoredScores(torch.ones(1), one.top_ids[:, :1], one.top_logprobs[:, :1])})
    assert store.get("other", ["key"])["key"].top_ids.shape[1] == 4


def test_scores_in_another_dtype_are_not_used(tmp_path: Path, batch: Batch):
    """The digest of a teacher's files does not say in which dtype they were loaded."""
    narrow, plain = local_teacher(), local_teacher()
    narrow.model = narrow.model.to(torch.bfloat16)
    first, second = (cached(tmp_path / "scores.db", each) for each in (narrow, plain))
    first.score(batch, REQUEST, 1.0)
    assert equal(second.score(batch, REQUEST, 1.0), plain.score(batch, REQUEST, 1.0))
    assert second.misses == 3
    alone = cached(tmp_path / "narrow.db")
    cached(tmp_path / "narrow.db", narrow).score(batch, REQUEST, 1.0)
    assert equal(alone.score(batch, REQUEST, 1.0), narrow.score(batch, REQUEST, 1.0)), "whatever the file has"


def test_the_context_of_a_teacher_behind_others_counts(tmp_path: Path):
    teacher = micro_suite()["teacher"]
    short = {**teacher, "architecture": {**teacher["architecture"], "context": 32}}
    routed = {"kind": "routed", "by_task": {"a": teacher, "b": short}}
    spec = read_teacher({"kind": "cache", "path": str(tmp_path / "scores.db"), "of": routed})
    nowhere: Any = None
    pool = TeacherPool("cpu", tmp_path, nowhere)
    assert pool.context_of(spec, "b") == 32
    assert pool.context_of(spec, "a") == teacher["architecture"]["context"]


def test_a_task_without_a_teacher_is_refused_before_the_run(tmp_path: Path):
    routed = {"kind": "routed", "by_task": {"tiny_weather": micro_suite()["teacher"]}}
    for teacher in (routed, {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": routed}):
        suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", {**micro_suite(), "teacher": teacher})))
        spec = RunSpec(suite, "opd", 0)
        with pytest.raises(ConfigError, match=r"stage tiny_currency: teacher\.by_task "):
            refuse_teachers(spec)
    nested = {**routed, "otherwise": {"kind": "routed", "by_task": {"tiny_currency": micro_suite()["teacher"]}}}
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", {**micro_suite(), "teacher": nested})))
    refuse_teachers(RunSpec(suite, "opd", 0))


def test_each_tasks_teacher_scores_its_responses(batch: Batch):
    first, second = local_teacher(1), local_teacher(2)
    rows = [replace(r, example=replace(r.example, task=f"task{i % 2}")) for i, r in enumerate(batch.rollouts)]
    mixed = replace(batch, rollouts=tuple(rows))
    found = RoutedTeacher({"task0": first, "task1": second}, None).score(mixed, REQUEST, 1.0)
    lengths = [len(r.response) for r in rows]
    parts = [first.score(batch, REQUEST, 1.0), second.score(batch, REQUEST, 1.0), first.score(batch, REQUEST, 1.0)]
    for name in ("sampled", "top_logprobs", "entropy"):
        wanted = [getattr(p, name).split(lengths)[i] for i, p in enumerate(parts)]
        assert torch.allclose(getattr(found, name).double(), torch.cat(wanted).double(), atol=1e-6)
    with pytest.raises(ConfigError, match="no teacher for task task1"):
        RoutedTeacher({"task0": first}, None).score(mixed, REQUEST, 1.0)
    assert RoutedTeacher({"task0": first}, second).score(mixed, REQUEST, 1.0).sampled.isfinite().all()


def test_a_run_repeats_from_the_cache_without_its_teacher_to_the_bit(tmp_path: Path):
    suite = {**micro_suite(), "stages": ["tiny_weather"], "probes": [], "adapters": {"aopd": {}}}
    weights = []
    for name, of in (("filled", suite["teacher"]), ("read", None)):
        teacher = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": of}
        file = write_yaml(tmp_path / f"{name}.yaml", {**suite, "teacher": teacher})
        spec = RunSpec(load_suite(str(file)), "aopd", 0, out=tmp_path / name)
        run(spec)
        weights.append(json.loads((spec.path / "manifest.json").read_text())["weights"])
    assert weights[0] == weights[1]


def test_the_command_fills_a_cache_with_references_and_rollouts_once(tmp_path: Path, aopd: Path):
    raw = {**micro_suite(), "stages": ["tiny_weather"], "probes": [], "adapters": {"aopd": {}}}
    raw["training"] = {**raw["training"], "train_items": 20}
    raw["teacher"] = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": raw["teacher"]}
    spec = RunSpec(load_suite(str(write_yaml(tmp_path / "suite.yaml", raw))), "aopd", 0, out=tmp_path / "runs")
    first, again = fill_cache(spec, [], silent)[0], fill_cache(spec, [aopd], silent)[0]
    assert (first.responses, first.scored, again.scored <= again.responses - first.responses) == (20, 20, True)
    assert sum(ScoreStore(tmp_path / "scores.db").teachers().values()) >= 20
    with pytest.raises(ConfigError, match="no teacher of kind cache"):
        fill_cache(RunSpec(load_suite(str(write_yaml(tmp_path / "plain.yaml", micro_suite()))), "aopd", 0), [], silent)


def test_the_command_scores_in_the_precision_in_which_training_scores(tmp_path: Path):
    """Master weights and autocast compute in bfloat16, so both ask for the same scores."""
    raw = {**micro_suite(), "stages": ["tiny_weather"], "probes": [], "adapters": {"opd": {}}}
    raw["teacher"] = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": raw["teacher"]}
    scored = []
    for narrow in ({"precision": "bfloat16_master"}, {"autocast": "bfloat16"}, {}):
        raw["training"] = {**micro_suite()["training"], "train_items": 4, **narrow}
        suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", raw)))
        scored.append(fill_cache(RunSpec(suite, "opd", 0, out=tmp_path), [], silent)[0].scored)
    assert scored == [4, 0, 4]


def test_the_command_asks_for_what_a_stages_own_adapter_needs(tmp_path: Path):
    stage = {"task": "tiny_weather", "adapter": "aopd"}
    raw = {**micro_suite(), "stages": [stage], "probes": [], "adapters": {"opd": {}, "aopd": {}}}
    raw["training"] = {**raw["training"], "train_items": 10}
    raw["teacher"] = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": raw["teacher"]}
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", raw)))
    first, again = (fill_cache(RunSpec(suite, entry, 0, out=tmp_path), [], silent)[0] for entry in ("opd", "aopd"))
    assert (first.scored, again.scored) == (10, 0)


@pytest.mark.parametrize("own", [True, False], ids=["the stage's own teacher", "the suite's"])
def test_the_command_scores_nothing_for_a_stage_that_reads_no_teacher(own: bool, tmp_path: Path):
    raw = {**micro_suite(), "probes": [], "adapters": {"opd": {}, "sft": {}}}
    raw["training"] = {**raw["training"], "train_items": 10}
    teacher = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": raw.pop("teacher")}
    raw |= {} if own else {"teacher": teacher}
    last = {"task": "tiny_currency", **({"teacher": teacher} if own else {})}
    raw["stages"] = [{"task": "tiny_weather", "adapter": "sft"}, last]
    suite = load_suite(str(write_yaml(tmp_path / "suite.yaml", raw)))
    filled = fill_cache(RunSpec(suite, "opd", 0, out=tmp_path), [], silent)
    assert [(stage.name, stage.scored) for stage in filled] == [("tiny_currency", 10)]
    with pytest.raises(ConfigError, match=r"adapters\.sft"):
        fill_cache(RunSpec(suite, "sft", 0, out=tmp_path), [], silent)


@pytest.mark.pitfall(
    "a cache gives the scores of a server in bfloat16 to a run whose teacher is served in float32",
    area="vLLM",
    guard="`harness/teachers/score_store.py` tells servers of one model apart by their scores of the probe",
    evidence="with the student's autocast in the key, the second server's responses are all found, and under autocast none is",
)
def test_a_servers_scores_are_kept_by_its_own_precision_and_not_the_students(
    student: Loaded, local: LocalTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    batch, request = random_batches(student)[0], TeacherRequest(top_k=4)
    server = FakeServer(local.model, student.renderer.tokenizer)
    half = FakeServer(copy.deepcopy(local.model).bfloat16(), student.renderer.tokenizer)
    near = FakeServer(local.model, student.renderer.tokenizer)
    near.temperature = 1.005  # as near as rounding: the same most probable tokens, so the same identity

    def opened(url: str, folder: str) -> CachedTeacher:
        of = Server.model_validate({"kind": "server", "urls": [url], "model": "teacher", "tolerance": 0.2})
        site = TeacherSite("cpu", tmp_path / folder, lambda spec, loaded: spec.open(loaded, site))  # pyright: ignore
        return Cache(kind="cache", path=tmp_path / "scores.db", of=of).open(student, site)

    with serving(server) as single, serving(half) as rounded, serving(near) as nearly:
        first = opened(single, "first")
        expected = first.score(batch, request, 1.0)
        again = opened(single, "again")
        with torch.autocast("cpu", torch.bfloat16):  # a student in another precision
            assert equal(again.score(batch, request, 1.0), expected)
        assert (again.hits, again.misses) == (len(batch.rollouts), 0)
        assert not caplog.records
        for url in (rounded, nearly):
            other = opened(url, url[-5:])
            assert not equal(other.score(batch, request, 1.0), expected)
            assert (other.hits, other.misses) == (0, len(batch.rollouts))
        assert other.identity == first.identity
        assert re.search(rf"\b{len(batch.rollouts)} responses .*different", caplog.text)
    kind = Cache(kind="cache", path=tmp_path / "scores.db")
    with pytest.raises(ConfigError, match="choose one"):
        kind.check()
    alone = kind.model_copy(update={"identity": first.name}).open(student, TeacherSite("cpu", tmp_path))
    assert equal(alone.score(batch, request, 1.0), expected)
    assert alone.identity == first.identity


def test_a_file_of_an_earlier_version_is_read_and_named(
    student: Loaded, local: LocalTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Its rows have a served teacher's identity alone, and the precision of the student that asked."""
    batch, request, path = random_batches(student)[0], TeacherRequest(top_k=4), tmp_path / "scores.db"
    with serving(FakeServer(local.model, student.renderer.tokenizer)) as url:
        of = Server.model_validate({"kind": "server", "urls": [url], "model": "teacher"})
        site = TeacherSite("cpu", tmp_path, lambda spec, loaded: spec.open(loaded, site))  # pyright: ignore
        expected = cached(path, local, of.open(student, site).identity).score(batch, request, 1.0)
        alone = Cache(kind="cache", path=path).open(student, site)
        assert equal(alone.score(batch, request, 1.0), expected)
        assert (alone.hits, alone.misses) == (len(batch.rollouts), 0)
        behind = Cache(kind="cache", path=path, of=of).open(student, site)
        assert equal(behind.score(batch, request, 1.0), expected)
        assert (behind.hits, behind.misses) == (0, len(batch.rollouts))
        assert "in a different or unknown precision" in caplog.text


def test_rows_of_an_earlier_version_are_those_of_the_first_teacher_with_these_weights(tmp_path: Path, batch: Batch):
    """They name its weights alone; a teacher with another configuration has rows of its own."""
    path = tmp_path / "scores.db"
    student: Any = None
    cached(path, local_teacher(), "weights").score(batch, REQUEST, 1.0)
    found: list[tuple[int, int]] = []
    kind = Cache.model_validate(
        {"kind": "cache", "path": str(path), "identity": "weights", "of": micro_suite()["teacher"]}
    )
    for configuration in ("a", "a", "b"):
        identity = full_identity("weights", configuration)
        behind = LocalTeacher(qwen3(seed=1), FakeTokenizer(), FakeTokenizer(), identity)
        teacher = kind.open(student, TeacherSite("cpu", tmp_path, lambda *_, behind=behind: behind))
        teacher.score(batch, REQUEST, 1.0)
        found.append((teacher.hits, teacher.misses))
    assert found == [(3, 0), (3, 0), (0, 3)]
    assert ScoreStore(path).teachers() == {full_identity("weights", each): 3 for each in ("a", "b")}
