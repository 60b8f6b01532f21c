"""Exact ids of a response: the local teacher's scores where a server offers them, its top K elsewhere, and no broken answer.

The server is a light one that speaks vLLM's `/inference/v1/generate`; what a real one offers is in `test_served_by_vllm.py`.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.config.run_spec import RunSpec
from harness.errors import TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.completions import COMPLETIONS
from harness.lm.logprobs import TeacherRequest
from harness.pipeline.run import run
from harness.teachers.exact_ids import GENERATE
from harness.teachers.local import LocalTeacher
from harness.teachers.score_checks import ask
from harness.teachers.server import Server, ServerTeacher
from harness.teachers.teacher import TeacherSite
from tests.support.runs import FOLDERS, changed_suite
from tests.support.servers.fake_server import FakeServer, serving
from tests.support.servers.teachers import random_batches, same_scores

STEPS_OF_FIRST = Path(FOLDERS[1], "train", "steps.jsonl")
SAMPLED, TOP_K = TeacherRequest(), TeacherRequest(top_k=4)


class Spy:
    """Stands in front of a server, keeps the paths of its requests, and breaks one in `every` exact answers with `fault`."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.paths: list[str] = []
        self.fault: Callable[[int, Any], tuple[int, Any]] | None = None
        self.every, self.exact, self.injected = 1, 0, 0

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.paths.append(path)
        found = self.server.answer(path, body)
        self.exact += path == GENERATE
        if path == GENERATE and self.fault is not None and self.exact % self.every == 0:
            self.injected += 1
            return self.fault(*found)
        return found


@pytest.fixture
def spy(local: LocalTeacher, student: Loaded) -> Spy:
    server = FakeServer(local.model, student.renderer.tokenizer)
    server.scores_exact_ids = True
    return Spy(server)


@pytest.fixture
def stack() -> Generator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def opened(spy: Spy, student: Loaded, folder: Path, stack: ExitStack, **changes: Any) -> ServerTeacher:
    url = stack.enter_context(serving(spy))
    quick = {"timeout": 5.0, "deadline": 30.0, "start_deadline": 1.0}
    kind = Server.model_validate({"kind": "server", "urls": [url], "model": "teacher", **quick, **changes})
    teacher = kind.open(student, TeacherSite("cpu", folder))
    stack.callback(teacher.close)
    teacher.replicas.patience.__dict__["longest_pause"] = 0.01
    spy.paths.clear()
    return teacher


def test_a_loss_of_the_sampled_token_gets_exact_ids_and_one_of_the_top_k_gets_those(
    spy: Spy, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    teacher = opened(spy, student, tmp_path, stack)
    for batch in random_batches(student):
        assert same_scores(ask(teacher, batch, SAMPLED, 1.0), local.score(batch, SAMPLED, 1.0))
    assert spy.paths.count(GENERATE) == sum(len(batch.rollouts) for batch in random_batches(student))
    spy.paths.clear()
    for batch in random_batches(student):
        assert same_scores(ask(teacher, batch, TOP_K, 1.0), local.score(batch, TOP_K, 1.0))
    assert GENERATE not in spy.paths


def test_a_response_with_more_tokens_than_a_request_may_name_is_scored_by_the_top_k(
    spy: Spy, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    spy.server.max_logprobs = 6
    teacher = opened(spy, student, tmp_path, stack, max_logprobs=6)
    for batch in random_batches(student):
        distinct = [len(set(rollout.response)) for rollout in batch.rollouts]
        spy.paths.clear()
        assert same_scores(ask(teacher, batch, SAMPLED, 1.0), local.score(batch, SAMPLED, 1.0))
        assert spy.paths.count(GENERATE) == sum(count <= 6 for count in distinct)


def test_a_stage_of_the_sampled_token_asks_for_exact_ids_alone(
    spy: Spy, opd: Path, micro_file: Path, tmp_path: Path, stack: ExitStack
):
    """It trains as with the same teacher in its own process; the figures of the teacher's first choice are not known."""
    spy.server.max_logprobs = 300
    url = stack.enter_context(serving(spy))
    teacher = {"kind": "server", "urls": [url], "model": "teacher", "max_logprobs": 300}
    cached = {"kind": "cache", "path": str(tmp_path / "scores.db"), "of": teacher}
    alone = {"kind": "cache", "path": str(tmp_path / "scores.db")}
    known = [json.loads(line) for line in (opd / STEPS_OF_FIRST).read_text().splitlines()]
    for name, each, asked in (("server", teacher, 8), ("cache", cached, 8), ("file", alone, 0)):
        suite = changed_suite(
            tmp_path, lambda raw, each=each: raw.update(teacher=each, stages=["tiny_weather"], probes=[])
        )
        spy.paths.clear()
        steps = (run(RunSpec(suite, "opd", 0, out=tmp_path / name)) / STEPS_OF_FIRST).read_text().splitlines()
        # The first request finds out whether exact ids are offered; the probe is scored before and after each other one.
        trained = spy.paths[spy.paths.index(GENERATE) + 1 :] if asked else spy.paths
        assert Counter(trained) == Counter({GENERATE: asked, COMPLETIONS: 2 * asked})
        for line, expected in zip(map(json.loads, steps), known, strict=True):
            same = ("advantage_mean", "loss", "grad_norm", "teacher_neginf_share", "response_tokens_mean")
            assert {key: line[key] for key in same} == pytest.approx({key: expected[key] for key in same}, abs=1e-4)
            for missing in ("teacher_entropy", "teacher_agreement", "teacher_top_mass", "pull_up", "overlap", "top_k"):
                assert line.get(missing) is None
                assert expected[missing] is not None
        rows = pd.read_parquet(
            tmp_path / name / "micro/opd/default/seed0" / STEPS_OF_FIRST.with_name("rollouts.parquet")
        )
        assert rows["teacher_top1"].isna().all()
        assert rows["teacher_logprob"].notna().all()


@pytest.mark.parametrize("why", ["not offered", "ignored", "other scores", "switched off"])
def test_a_server_that_does_not_offer_exact_ids_is_asked_for_its_top_k(
    why: str, spy: Spy, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    if why == "not offered":
        spy.server.scores_exact_ids = False
    elif why == "ignored":  # as vLLM's /v1/completions does with a field that it does not know
        spy.fault = lambda status, answer: (status, {**answer, "prompt_token_id_logprobs": None})
    elif why == "other scores":
        spy.fault = lambda status, answer: (status, edited(answer, lambda rows: rows - 0.5))
    teacher = opened(spy, student, tmp_path, stack, exact_ids=why != "switched off")
    batch = random_batches(student)[0]
    assert same_scores(ask(teacher, batch, SAMPLED, 1.0), local.score(batch, SAMPLED, 1.0))
    assert GENERATE not in spy.paths


def test_a_server_that_changes_its_weights_is_noticed_before_or_after_an_exact_answer(
    spy: Spy, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    teacher = opened(spy, student, tmp_path, stack, deadline=1.0)
    batch = random_batches(student)[0]

    def swap(status: int, answer: Any) -> tuple[int, Any]:
        spy.server.model = student.model
        return status, answer

    spy.fault = swap
    with pytest.raises(TrainingError, match=r"not the one .*began with: .*nats"):
        teacher.score(batch, SAMPLED, 1.0)


def edited(answer: Any, change: Callable[[Any], Any]) -> Any:
    """Return an answer with other rows."""
    rows = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
    file = io.BytesIO()
    np.save(file, change(rows.copy()), allow_pickle=True)
    return {**answer, "prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode()}


def with_entry(value: float) -> Callable[[Any], Any]:
    def change(rows: Any) -> Any:
        rows[-1, 0] = value
        return rows

    return change


def late(status: int, answer: Any) -> tuple[int, Any]:
    time.sleep(3.0)
    return status, answer


def with_rows(change: Callable[[Any], Any]) -> Callable[[int, Any], tuple[int, Any]]:
    return lambda status, answer: (status, edited(answer, change))


def with_text(change: Callable[[str], Any]) -> Callable[[int, Any], tuple[int, Any]]:
    return lambda status, answer: (
        status,
        {**answer, "prompt_token_id_logprobs": change(answer["prompt_token_id_logprobs"])},
    )


FAULTS: dict[str, Callable[[int, Any], tuple[int, Any]]] = {
    "time-out": late,
    "429": lambda *_: (429, {"error": {"message": "too many requests"}}),
    "500": lambda *_: (500, {}),
    "no answer": lambda *_: (0, None),
    "HTML": lambda *_: (200, b"<html>504 Gateway Time-out</html>"),
    "null": lambda *_: (200, None),
    "no scores": lambda status, answer: (status, {**answer, "prompt_token_id_logprobs": None}),
    "another sequence": lambda status, answer: (
        status,
        {**answer, "prompt_token_ids": answer["prompt_token_ids"][:-1]},
    ),
    "no sequence": lambda status, answer: (status, {**answer, "prompt_token_ids": None}),
    "not base64": with_text(lambda text: text[:-7] + "*"),
    "cut": with_text(lambda text: text[: len(text) // 2 // 4 * 4]),
    "empty": with_text(lambda _: ""),
    "a row missing": with_rows(lambda rows: rows[:-1]),
    "a row twice": with_rows(lambda rows: np.concatenate([rows, rows[-1:]])),
    "turned": with_rows(lambda rows: rows.T[:, :, None]),
    "float64": with_rows(lambda rows: rows.astype(np.float64)),
    "pickled": with_rows(lambda rows: np.array([{"rows": rows}], dtype=object)),
    "NaN": with_rows(with_entry(float("nan"))),
    "infinite": with_rows(with_entry(float("-inf"))),
    "positive": with_rows(with_entry(0.5)),
    "zeros": with_rows(np.zeros_like),
    "probabilities": with_rows(np.exp),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_no_broken_answer_is_used_and_none_loses_a_run(
    name: str, spy: Spy, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    # An answer is late after two seconds: on a busy machine a good one takes a while too.
    timeout, deadline = (2.0, 6.0) if name == "time-out" else (5.0, 2.0)
    hasty = opened(spy, student, tmp_path, stack, timeout=timeout, deadline=deadline, wrong_answers=3)
    patient = opened(spy, student, tmp_path, stack, timeout=timeout, deadline=60.0, wrong_answers=50)
    assert hasty.exact is not None
    assert patient.exact is not None
    spy.fault = FAULTS[name]
    batch = random_batches(student)[0]
    with pytest.raises(TrainingError) as caught:
        hasty.score(batch, SAMPLED, 1.0)
    assert str(caught.value).startswith("the teacher ")
    spy.every, spy.exact, spy.injected = 3, 0, 0
    assert same_scores(ask(patient, batch, SAMPLED, 1.0), local.score(batch, SAMPLED, 1.0))
    assert spy.injected
