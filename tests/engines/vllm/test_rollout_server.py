"""Real vLLM servers draw the rollouts: after each hand-over of weights their log-probabilities are the trainer's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.engines.backend import EngineSite
from harness.engines.engine import Sampling
from harness.engines.hf import HFEngine
from harness.engines.student import StudentEngine
from harness.engines.vllm_server import EXTENSION, ServedEngine, VLLMServer
from harness.errors import RunError
from harness.lm.checkpoints import Loaded
from harness.pipeline.run import run
from tests.support.evaluation import with_config
from tests.support.models import dense_logprobs, write_yaml
from tests.support.servers.vllm import PROMPTS, check_special_stop_string, wide_suite
from tests.support.servers.vllm_serve import vllm_server

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def url(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """One server for all tests of this module, started on the untouched student.

    It takes its defaults from a generation_config.json that has a repetition penalty.
    """
    options = (
        "--logprobs-mode",
        "processed_logprobs",
        "--worker-extension-cls",
        EXTENSION,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        log = tmp_path_factory.mktemp("vllm") / "log.txt"
        penalised = shutil.copytree(student_folder, tmp_path_factory.mktemp("penalised") / "student")
        own = json.loads((penalised / "generation_config.json").read_text())
        (penalised / "generation_config.json").write_text(json.dumps({**own, "repetition_penalty": 1.5, "min_p": 0.2}))
        with vllm_server(penalised, log, *options, name="student") as address:
            yield address


@pytest.fixture
def served(url: str, student_folder: Path, tmp_path: Path) -> Generator[ServedEngine]:
    backend = VLLMServer.model_validate(
        {"urls": [url], "shared_folder": str(tmp_path), "deadline": 900, "timeout": 900}
    )
    engine = backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))
    assert isinstance(engine, ServedEngine)
    yield engine
    engine.close()


@pytest.mark.pitfall(
    "`reload_weights` over HTTP leaves a model with tied embeddings with a mixture of old and new weights",
    area="vLLM",
    guard="`harness/engines/vllm_worker.py`, the servers' worker extension, prepares the output layer again",
    evidence="with `reload_weights` in the place of `take_weights` the log-probabilities are those of no checkpoint",
)
def test_served_log_probabilities_are_the_trainers_after_each_hand_over(served: ServedEngine, student: Loaded):
    sampling = Sampling(12, stop_ids=student.renderer.stop_ids, seed=3)
    engine, generator = StudentEngine(served, student.model), torch.Generator().manual_seed(1)
    for _ in range(3):
        for prompt, done in zip(PROMPTS * 2, engine.generate(PROMPTS * 2, sampling), strict=True):
            stops = [token in sampling.stop_ids for token in done.tokens]
            assert done.finish == ("stop" if stops[-1] else "length")
            assert not any(stops[:-1])
            logprobs = dense_logprobs(student.model, prompt + done.tokens)[len(prompt) - 1 : -1]
            expected = logprobs[range(len(done.tokens)), done.tokens]
            assert done.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)


@pytest.mark.pitfall(
    "a vLLM server applies the repetition penalty of the checkpoint's generation_config.json to rollouts and answers",
    area="vLLM",
    guard="`harness/engines/vllm_server.py` turns off in each request what the file may turn on",
    evidence="the requests leave them out",
)
def test_answers_are_drawn_without_the_penalties_of_the_checkpoint(served: ServedEngine, student: Loaded):
    prompt = [5, 6, 7, 8] * 3
    sampling = Sampling(12, temperature=0)
    (expected,) = HFEngine(student.model, student.renderer.tokenizer).generate([prompt], sampling)
    (found,) = served.generate([prompt], sampling)
    assert found.tokens == expected.tokens


def test_a_stop_string_that_is_a_special_token_ends_an_answer_where_it_does_on_hf(
    served: ServedEngine, student: Loaded
):
    check_special_stop_string(served, student)


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({"dtype": "bfloat16"}, {}, r"computes in float32, expected bfloat16"),
        (
            {},
            {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
            r"rope_theta \(\d+\.0 and 5000\.0\);",
        ),
    ],
)
def test_a_server_is_refused_where_it_would_compute_something_else(
    settings: dict[str, Any], config: dict[str, Any], expected: str, url: str, student_folder: Path, tmp_path: Path
):
    backend = VLLMServer.model_validate({"urls": [url], "deadline": 900, **settings})
    checkpoint = with_config(student_folder, tmp_path / "changed", **config)
    with pytest.raises(RunError, match=expected):
        backend.start(checkpoint, EngineSite("cpu", "float32", 1, tmp_path / "log.txt"))


def test_a_server_that_lost_the_hand_over_is_refused_even_if_it_has_equal_weights(
    served: ServedEngine, student_folder: Path
):
    take = {"method": "take_weights", "kwargs": {"folder": str(student_folder)}}  # without a tag, as after a restart
    served.replicas.command(served.replicas.urls[0], "/collective_rpc", take)
    with pytest.raises(RunError, match=r"http://.* other weights .*hand-over"):
        served.generate(PROMPTS, Sampling(4))
    served.load(student_folder)
    assert len(served.generate(PROMPTS, Sampling(4))) == len(PROMPTS)


def test_weights_that_a_server_cannot_read_end_soon_and_it_goes_on(
    served: ServedEngine, student_folder: Path, tmp_path: Path
):
    with pytest.raises(
        RunError, match=r"http://.* did not take new weights: .*status 500 .*not see the folder.*shared_folder"
    ):
        served._call("take_weights", {"folder": str(tmp_path / "unseen"), "tag": "x"}, served._access)
    served.load(student_folder)
    assert len(served.generate(PROMPTS, Sampling(4))) == len(PROMPTS)


def test_a_server_with_other_weights_than_those_handed_over_is_refused(served: ServedEngine, changed: Path):
    served.replicas.command(
        served.replicas.urls[0], "/collective_rpc", {"method": "take_weights", "kwargs": {"folder": str(changed)}}
    )
    with pytest.raises(RunError, match=r"http://.* other weights .*hand-over"):
        served.generate(PROMPTS, Sampling(4))
    served.load(changed)
    assert len(served.generate(PROMPTS, Sampling(4))) == len(PROMPTS)


@pytest.mark.parametrize("several", [False, True], ids=["one process", "two processes, drawn ahead"])
def test_a_whole_run_trains_on_and_evaluates_with_the_servers(several: bool, url: str, tmp_path: Path):
    raw = {**wide_suite(), "stages": ["tiny_weather"], "probes": [], "adapters": {"opd": {}}}
    raw |= {"backend": "vllm_server", "vllm_server": {"urls": [url], "shared_folder": str(tmp_path), "deadline": 60}}
    if several:
        raw |= {"parallel": {"processes": 2}, "training": {**raw["training"], "staleness": 1}}
    path = run(RunSpec(load_suite(str(write_yaml(tmp_path / "suite.yaml", raw))), "opd", 0, out=tmp_path / "runs"))
    cell = json.loads(next(path.glob("stage_1_*/eval/tiny_weather/results.json")).read_text())
    assert cell["keys"]["fields"]["backend"]["engine"] == "vllm_server"
    weights = json.loads((path / "manifest.json").read_text())["weights"]
    assert weights["stage_1"] != weights["start"]
    steps = [json.loads(line) for line in next(path.glob("stage_1_*/train/steps.jsonl")).read_text().splitlines()]
    if several:
        assert [step["staleness"] for step in steps] == [0, *[1] * (len(steps) - 1)]
        # The servers' log-probabilities, against the trainer's after one update more.
        assert all(abs(step["importance_mean"] - 1) < 0.2 for step in steps[1:])
    else:
        assert all(step["mismatch_mean"] < 1e-4 for step in steps)
