"""Backends and teachers from outside: one file and an entry point, and every part of a run uses them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.engines.backend import HF, EngineSite, backend_of
from harness.engines.engine import Completion, Sampling, answer_all
from harness.engines.engine_pool import EnginePool
from harness.engines.vllm_server import VLLMServer
from harness.errors import ConfigError, RunError, TaskError
from harness.evaluation.engine_model import EngineModel
from harness.evaluation.hf_model import HarnessHFLM
from harness.lm.checkpoints import weights_digest
from harness.pipeline.run import run
from tests.support.models import micro_suite, write_yaml
from tests.support.packages import install

PACKAGE = Path(__file__).parents[1] / "third_party_plugins"
PAGE = Path(__file__).parents[2] / "docs" / "add-a-backend.md"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(PACKAGE, tmp_path / "site", monkeypatch)


def suite_with(folder: Path, **changes: Any) -> Suite:
    return load_suite(str(write_yaml(folder / "suite.yaml", {**micro_suite(), **changes})))


def test_the_page_shows_the_package_as_it_is():
    text = PAGE.read_text(encoding="utf-8")
    shown = re.findall(r"^```(?:python|toml)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    names = ("toy_backend.py", "toy_teacher.py", "pyproject.toml")
    assert shown == [(PACKAGE / name).read_text(encoding="utf-8") for name in names]
    assert all(f"`{name}`" in text for name in names)


@pytest.mark.usefixtures("toy")
@pytest.mark.slow
def test_a_backend_from_outside_draws_the_rollouts_and_evaluates(tmp_path: Path):
    shortened = {"stages": ["tiny_weather"], "probes": [], "adapters": {"opd": {}}}
    hf = RunSpec(suite_with(tmp_path, **shortened), "opd", 0, out=tmp_path / "hf")
    other = RunSpec(suite_with(tmp_path, **shortened, backend="toy"), "opd", 0, out=tmp_path / "toy")
    found: list[dict[str, Any]] = []
    for spec in (hf, other):
        run(spec)
        cell = json.loads(next(spec.path.glob("stage_1_*/eval/tiny_weather/results.json")).read_text())
        found.append({"weights": json.loads((spec.path / "manifest.json").read_text())["weights"], **cell})
    assert (other.path / "toy.txt").read_text().startswith("started on ")
    assert found[0]["weights"] == found[1]["weights"], "the same rollouts, so the same weights to the bit"
    assert found[0]["score"] == found[1]["score"]
    assert found[1]["keys"]["fields"]["backend"]["engine"] == "toy"
    assert found[0]["keys"]["comparability"] != found[1]["keys"]["comparability"]


@pytest.mark.usefixtures("toy")
def test_likelihoods_of_an_engine_are_those_of_lm_evals_own_class(student_folder: Path, tmp_path: Path, micro: Suite):
    backend = backend_of(Suite.model_validate({**micro.model_dump(), "backend": "toy"}))
    engine = backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "toy.txt"))
    chat, asked = (
        micro.student.chat,
        [(("", ""), [5, 6, 7], [8]), (("", ""), [9], [10, 11]), (("", ""), [7] * 9, [1, 2])],
    )
    ours = EngineModel(engine, student_folder, weights_digest(student_folder), chat, batch_size=4, seed=1)
    stock = HarnessHFLM(student_folder, chat, device="cpu", dtype="float32", batch_size=4, seed=1)
    found, expected = ours._loglikelihood_tokens(asked), stock._loglikelihood_tokens(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.tok_encode("3+4") == stock.tok_encode("3+4")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("beyond", "most"), [(0, 128), (-1, 127)], ids=["any engine", "a server of vLLM"])
def test_windows_of_a_perplexity_and_scored_texts_are_as_long_as_the_engine_accepts(
    beyond: int, most: int, student_folder: Path, tmp_path: Path, micro: Suite, monkeypatch: pytest.MonkeyPatch
):
    assert VLLMServer.beyond_context == -1
    backend = backend_of(Suite.model_validate({**micro.model_dump(), "backend": "toy"}))
    monkeypatch.setattr(type(backend), "beyond_context", beyond)
    engine = backend.start(student_folder, EngineSite("cpu", "float32", 1, tmp_path / "toy.txt"))
    own, asked = engine.prompt_logprobs, list[int]()

    def prompt_logprobs(prompts: Sequence[list[int]]) -> list[Any]:
        asked.extend(map(len, prompts))
        return own(prompts)

    monkeypatch.setattr(engine, "prompt_logprobs", prompt_logprobs)
    chat = micro.student.chat
    ours = EngineModel(engine, student_folder, weights_digest(student_folder), chat, batch_size=4, seed=1)
    stock = HarnessHFLM(student_folder, chat, device="cpu", dtype="float32", batch_size=4, seed=1)
    stock._max_length = most - 1
    whole: Any = [SimpleNamespace(args=("3 + 4 is 7, " * 60,), task_name="t")]
    assert ours.loglikelihood_rolling(whole) == pytest.approx(stock.loglikelihood_rolling(whole), abs=1e-3)
    assert max(asked) == most
    assert ours.max_length == 128
    ours._asked_by = {("", ""): "t"}
    assert len(ours._loglikelihood_tokens([(("", ""), [5] * (most - 9), [6] * 9)])) == 1
    with pytest.raises(TaskError, match=rf"{most + 1} tokens .*cut to the {most}\b"):
        ours._loglikelihood_tokens([(("", ""), [5] * (most - 8), [6] * 9)])


@pytest.mark.usefixtures("toy")
def test_settings_stand_in_a_block_of_the_backends_name(tmp_path: Path):
    suite = suite_with(tmp_path, backend="toy", toy={"max_length": 64})
    assert suite.context(128) == 64
    assert suite.model_dump()["toy"] == {"batch_size": 64, "max_length": 64}
    assert Suite.model_validate(suite.model_dump()) == suite
    with pytest.raises(ConfigError, match=r"toy\.max_lenght: unknown key; .*'max_length'"):
        suite_with(tmp_path, backend="toy", toy={"max_lenght": 64})
    with pytest.raises(ConfigError, match=r"vllm\.max_num_seqs: found 0; .*greater than 0"):
        suite_with(tmp_path, vllm={"max_num_seqs": 0})


def test_a_suite_may_hold_settings_of_a_backend_that_it_does_not_use(tmp_path: Path):
    plain, both = suite_with(tmp_path), suite_with(tmp_path, vllm={"max_num_seqs": 4})
    assert plain.model_dump() == both.model_dump()
    assert backend_of(both) == HF()
    used = suite_with(tmp_path, vllm={"max_num_seqs": 4}, backend="vllm")
    assert used.model_dump()["vllm"]["max_num_seqs"] == 4


def test_an_unknown_backend_is_refused_with_those_that_are_registered(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"backend: .*'vlm'; .*'vllm'\? .*\bhf, "):
        suite_with(tmp_path, backend="vlm")


def test_reading_a_suite_on_vllm_imports_no_torch(tmp_path: Path):
    path = write_yaml(tmp_path / "suite.yaml", {**micro_suite(), "backend": "vllm", "vllm": {"max_model_len": 64}})
    code = (
        "import sys; from harness.config.load import load_suite; "
        f"load_suite({str(path)!r}); print(sorted({{'torch', 'transformers', 'vllm'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Half:
    """An engine that another package has not finished: it answers every second prompt."""

    backend = HF()

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        return [Completion([5], "stop") for _ in prompts[::2]]


def test_an_engine_that_lacks_a_part_or_an_answer_is_named(
    micro: Suite, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(HF, "in_process", False)
    monkeypatch.setattr(HF, "start", lambda *_: Half())
    with pytest.raises(ConfigError, match=r"\bHalf, .*lacks load, prompt_logprobs, describe, close"):
        EnginePool(micro, "cpu", tmp_path).take(student_folder)
    with pytest.raises(RunError, match=r"Half\.generate .*list of 1 Completion, .*list of 2 Completion"):
        answer_all(Half(), [[3], [4]], Sampling(max_new_tokens=1))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("adapter", ["opd", "aopd"])
def test_a_teacher_from_outside_teaches(adapter: str, tmp_path: Path):
    table = tmp_path / "table.json"
    # No two tokens follow with one probability: a teacher that repeats a score is taken for one that failed.
    following = {i: {j: 1 + (31 * i + 17 * j) % 97 / 97 for j in range(290)} for i in range(290)}
    table.write_text(json.dumps(following))
    shortened = {"stages": ["tiny_weather"], "probes": [], "adapters": {adapter: {}}}
    teacher = {"kind": "bigram", "table": str(table)}
    spec = RunSpec(suite_with(tmp_path, **shortened, teacher=teacher), adapter, 0, out=tmp_path / "runs")
    run(spec)
    manifest = json.loads((spec.path / "manifest.json").read_text())
    assert manifest["weights"]["teacher"] == hashlib.sha256(table.read_bytes()).hexdigest()[:16]
    assert manifest["weights"]["stage_1"] != manifest["weights"]["start"]
    assert manifest["config"]["teacher"] == {**teacher, "smoothing": 1.0}
    steps = next(spec.path.glob("stage_1_*/train/steps.jsonl")).read_text().splitlines()
    # The scores of a table that is nearly flat are about -log 300.
    assert json.loads(steps[0])["advantage_mean"] == pytest.approx(
        -math.log(300) + json.loads(steps[0])["entropy"], abs=1.5
    )


@pytest.mark.usefixtures("toy")
def test_a_teacher_that_cannot_return_what_an_adapter_needs_is_refused_before_the_run(tmp_path: Path):
    teacher = {"kind": "bigram", "table": "nowhere.json"}
    spec = RunSpec(suite_with(tmp_path, teacher=teacher, adapters={"rkl": {}}), "rkl", 0, out=tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"provides 'full', but .*'bigram' provides"):
        run(spec)
    assert not (spec.path / "stage_0").exists()


@pytest.mark.usefixtures("toy")
def test_mistakes_below_a_teacher_from_outside_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"teacher\.tabel: unknown key; .*'table'"):
        suite_with(tmp_path, teacher={"kind": "bigram", "table": "x", "tabel": "x"})
    with pytest.raises(ConfigError, match=r"teacher\.table: missing"):
        suite_with(tmp_path, teacher={"kind": "bigram"})
    with pytest.raises(ConfigError, match=r"teacher: .*kind: .*pretrained, scratch, bigram"):
        suite_with(tmp_path, teacher={"kind": "bigrams"})
