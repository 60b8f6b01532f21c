"""A teacher behind a server: its scores are the local model's, and no fault of a server trains a student or goes unreported.

The server is a light one with a small model's own logits; `test_served_by_vllm.py` runs the same against a real `vllm serve`.
`SERVER_FAULTS` sets how many faults are tried.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import ConfigError, HarnessError, ModelError, TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest
from harness.teachers.local import LocalTeacher
from harness.teachers.score_checks import ask
from harness.teachers.server import Server, ServerTeacher
from harness.teachers.teacher import TeacherSite
from tests.support.servers.fake_server import FakeServer, serving
from tests.support.servers.fault_proxy import FAULTS, FaultProxy
from tests.support.servers.teachers import random_batches, same_scores

K = 4
REQUEST = TeacherRequest(top_k=K)


@pytest.fixture
def server(local: LocalTeacher, student: Loaded) -> FakeServer:
    return FakeServer(local.model, student.renderer.tokenizer)


@pytest.fixture
def stack() -> Generator[ExitStack]:
    with ExitStack() as opened:
        yield opened


# An answer is late after two seconds: on a busy machine a good one takes a while too.
LATE = {"timeout": 2.0, "deadline": 6.0}


def settings(*urls: str, **changes: Any) -> Server:
    quick = {"timeout": 5.0, "deadline": 30.0, "start_deadline": 1.0}
    return Server.model_validate({"kind": "server", "urls": urls, "model": "teacher", **quick, **changes})


def opened(kind: Server, student: Loaded, folder: Path, stack: ExitStack) -> ServerTeacher:
    teacher = kind.open(student, TeacherSite("cpu", folder))
    stack.callback(teacher.close)
    teacher.replicas.patience.__dict__["longest_pause"] = 0.01
    return teacher


def test_a_served_teacher_returns_the_scores_of_the_local_one(
    server: FakeServer, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    urls = [stack.enter_context(serving(server)) for _ in range(2)]
    kind = settings(*urls, batch=2)
    kind.check()
    assert kind.context == server.context - 1
    teacher = opened(kind, student, tmp_path, stack)
    for batch in random_batches(student):
        assert same_scores(ask(teacher, batch, REQUEST, 1.0), local.score(batch, REQUEST, 1.0))
        found = teacher.score(batch, TeacherRequest(), 1.0)
        assert found.top_ids.shape == (len(batch.targets), 0)


def test_a_teacher_with_padded_rows_is_accepted(
    server: FakeServer, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    class Padded(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            found = local.model(**inputs)
            padding = found.logits.max(-1, keepdim=True).values.expand(-1, -1, 3) - 1e-3
            found.logits = torch.cat([found.logits, padding], -1)
            return found

    server.model = Padded()
    teacher = opened(settings(stack.enter_context(serving(server))), student, tmp_path, stack)
    rows = len(student.model.get_output_embeddings().weight)
    for batch in random_batches(student):
        found, expected = teacher.score(batch, REQUEST, 1.0), local.score(batch, REQUEST, 1.0)
        assert torch.equal(found.top_ids, expected.top_ids)
        assert int(found.top_ids.max()) < rows
    server.max_logprobs = K
    tight = opened(settings(*teacher.kind.urls, max_logprobs=K), student, tmp_path / "tight", stack)
    with pytest.raises(TrainingError, match="max-logprobs"):
        tight.score(random_batches(student)[0], REQUEST, 1.0)


@pytest.mark.pitfall(
    "a teacher that answers flatly, at another position or at another temperature looks like any other",
    area="vLLM",
    guard="`harness/teachers/server_probe.py` checks a server against itself before it teaches",
    evidence="without `_check_places` and `_check_flat` these teachers open",
)
@pytest.mark.parametrize(
    "broken",
    [
        {"temperature": 2.0},
        {"temperature": 0.5},
        {"temperature": 1e9},
        {"shift": 1},
        {"shift": -1},
        {"max_logprobs": 10},
    ],
    ids=lambda change: "-".join(f"{key}={value:g}" for key, value in change.items()),
)
def test_a_teacher_that_would_teach_wrongly_is_refused_before_it_teaches(
    broken: dict[str, float], server: FakeServer, student: Loaded, tmp_path: Path, stack: ExitStack
):
    for name, value in broken.items():
        setattr(server, name, value)
    with pytest.raises((ModelError, TrainingError)):
        opened(settings(stack.enter_context(serving(server))), student, tmp_path, stack)


def test_another_tokenizer_another_name_and_no_server_are_refused(
    server: FakeServer, student: Loaded, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
):
    url = stack.enter_context(serving(server))
    with pytest.raises(ModelError, match="serves 'teacher', expected 'other'"):
        settings(url, model="other").check()
    with pytest.raises(TrainingError, match=r"did not answer within 0\.2 seconds"):
        settings("http://127.0.0.1:9", start_deadline=0.2).check()
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        settings(url, api_key_variable="NO_SUCH_KEY").check()
    own = server.tokenizer.encode

    def as_bytes(_: Any, text: str, **__: Any) -> list[int]:
        return list(text.encode())

    def without_accents(_: Any, text: str, **options: Any) -> list[int]:
        return own(text.replace("ã", "a"), **options)

    for encode in (as_bytes, without_accents):
        monkeypatch.setattr(server, "tokenizer", type("Other", (), {"encode": encode})())
        with pytest.raises(ModelError, match="reads a text as"):
            opened(settings(url), student, tmp_path, stack)


def test_what_a_server_cannot_return_is_refused_before_a_run():
    kind = settings("http://nowhere:1")
    kind.refuse(TeacherRequest(top_k=20), 1.0)
    with pytest.raises(ConfigError, match="--max-logprobs 32"):
        kind.refuse(TeacherRequest(top_k=32), 1.0)
    with pytest.raises(ConfigError, match="temperature"):
        kind.refuse(TeacherRequest(), 0.7)


@pytest.mark.pitfall(
    "a server that comes back with other weights goes on teaching",
    area="vLLM",
    guard="every request of `harness/teachers/server.py` carries a probe whose scores are known",
    evidence="without `probe.compare` the other model's scores are used",
)
def test_a_server_that_restarts_with_other_weights_stops_the_run_and_the_former_weights_continue_it(
    server: FakeServer, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    kind = settings(stack.enter_context(serving(server)))
    teacher = opened(kind, student, tmp_path, stack)
    batch = random_batches(student)[0]
    server.model = student.model
    with pytest.raises(TrainingError, match=r"not the one .*began with: .*nats"):
        teacher.score(batch, REQUEST, 1.0)
    with pytest.raises(ModelError, match=r"not the one .*began with: .*nats"):
        opened(kind, student, tmp_path, stack)
    server.model = local.model
    assert same_scores(
        opened(kind, student, tmp_path, stack).score(batch, REQUEST, 1.0), local.score(batch, REQUEST, 1.0)
    )


def test_one_replica_of_two_may_die(
    server: FakeServer, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    first = ExitStack()
    urls = [first.enter_context(serving(server)), stack.enter_context(serving(server))]
    teacher = opened(settings(*urls, batch=1), student, tmp_path, stack)
    first.close()
    for batch in random_batches(student):
        assert same_scores(teacher.score(batch, REQUEST, 1.0), local.score(batch, REQUEST, 1.0))


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_no_fault_is_used(
    name: str, server: FakeServer, local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    """A server that always has the same fault ends the run in one sentence."""
    other = stack.enter_context(serving(FakeServer(student.model, student.renderer.tokenizer)))
    proxy = FaultProxy(stack.enter_context(serving(server)), 1.0, {name: FAULTS[name]}, other=other)
    limits = LATE if name == "time-out" else {"timeout": 5.0, "deadline": 2.0}
    kind = settings(stack.enter_context(serving(proxy)), **limits, wrong_answers=3, batch=2)
    teacher = opened(kind, student, tmp_path, stack)
    proxy.active = True
    batch = random_batches(student)[0]
    with pytest.raises(TrainingError) as caught:
        teacher.score(batch, REQUEST, 1.0)
    assert str(caught.value).startswith("the teacher ")
    assert proxy.injected[name] >= 2, "a fault is answered by asking again"


@pytest.mark.slow
def test_faults_between_good_answers_change_nothing_and_lose_nothing(
    local: LocalTeacher, student: Loaded, tmp_path: Path, stack: ExitStack
):
    """Every third answer is broken; all scores are the local teacher's, and no request is given up."""
    budget = int(os.environ.get("SERVER_FAULTS", "60"))
    upstream, other = (
        stack.enter_context(serving(FakeServer(model, student.renderer.tokenizer)))
        for model in (local.model, student.model)
    )
    proxies = [FaultProxy(upstream, 0.35, seed=seed, other=other) for seed in (0, 1)]
    kind = settings(
        *(stack.enter_context(serving(proxy)) for proxy in proxies),
        timeout=LATE["timeout"],
        deadline=600.0,
        wrong_answers=50,
        batch=2,
    )
    teacher = opened(kind, student, tmp_path, stack)
    for proxy in proxies:
        proxy.active = True
    counts, seed, outcomes = Counter[str](), 0, Counter[str]()
    while sum(counts.values()) < budget:
        for batch in random_batches(student, seed=seed):
            try:
                found = ask(teacher, batch, REQUEST, 1.0)
            except HarnessError as error:
                outcomes[f"lost: {error}"] += 1
            else:
                outcomes["right" if same_scores(found, local.score(batch, REQUEST, 1.0)) else "used silently"] += 1
        seed += 1
        counts = sum((proxy.injected for proxy in proxies), Counter[str]())
    assert set(outcomes) == {"right"}, outcomes
