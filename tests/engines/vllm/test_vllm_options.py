"""vLLM as it is asked to run: its seed, its limits, its caches, the prompts it sees, and scripts that do not expect it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from harness.config.evaluation import Evaluation
from harness.config.load import load_suite
from harness.config.models import Chat
from harness.config.suite import Suite
from harness.engines.engine import Sampling
from harness.engines.vllm import VLLMEngine
from harness.errors import RunError, TaskError
from harness.evaluation.cell_cache import SharedCells
from harness.evaluation.evaluator import ServedCheckpoint, evaluate_checkpoint
from harness.lm.checkpoints import Loaded, load_checkpoint, weights_digest
from harness.lmeval.library import TaskLibrary
from tests.support.evaluation import THINKING, cells, settled
from tests.support.models import dense_logprobs, write_task, write_yaml
from tests.support.servers.vllm import PROMPTS, start, subject, wide_suite

pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm` installs it")
pytestmark = pytest.mark.vllm

CONTEXT = 512
SCRIPT = """
import sys
from pathlib import Path
from harness.engines.backend import EngineSite
from harness.engines.engine import Sampling
from harness.engines.vllm import VLLMEngine
from harness.engines.vllm_backend import VLLM

started = VLLMEngine(Path(sys.argv[1]), VLLM(), EngineSite("cpu", "float32", 1, Path(sys.argv[2])))
print(started.generate([[5, 6, 7, 8]], Sampling(4, temperature=0))[0].tokens)
started.close()
"""


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A suite whose student reads more than one block of vLLM's cache."""
    raw = json.loads(json.dumps(wide_suite()).replace('"context": 128', f'"context": {CONTEXT}'))
    return load_suite(str(write_yaml(tmp_path_factory.mktemp("suite") / "long.yaml", raw)))


@pytest.mark.pitfall(
    "lm-eval's seed does not change the seed of vLLM's engine",
    area="vLLM",
    guard="`harness/engines/vllm.py` starts the engine with the suite's seed",
    evidence="the engine gets no seed",
)
def test_the_engines_seed_is_the_suites(engine: VLLMEngine):
    assert "seed=1234," in engine.site.log.read_text(encoding="utf-8")


@pytest.mark.pitfall(
    'on a CPU, a prompt that vLLM reads in two parts stops a run whose answers have seeds ("CPU Generator does '
    'not use offset")',
    area="vLLM",
    guard="`harness/engines/vllm.py` makes vLLM read prompts whole on a CPU",
    evidence="prompts are read in parts, which is vLLM's default",
)
def test_more_prompts_than_one_pass_takes_are_sampled_with_their_seeds(engine: VLLMEngine):
    """In one pass vLLM reads up to 4,096 tokens; a prompt that it split there ended the run where its answer had a seed."""
    prompts = [[5 + number % 7] * 200 for number in range(48)]
    once, again = (engine.generate(prompts, Sampling(4, temperature=1.0, seed=3)) for _ in range(2))
    assert [done.tokens for done in once] == [done.tokens for done in again]
    assert {len(done.tokens) for done in once} == {4}


@pytest.mark.pitfall(
    "log-probabilities of a prompt over a large vocabulary run out of memory",
    area="vLLM",
    guard="`harness/engines/vllm_process.py` requests those of the token itself and of the most likely one only",
    evidence="as many are requested as vLLM gives",
)
def test_log_probabilities_of_a_prompt_are_few_and_at_temperature_one(
    engine: VLLMEngine, student_folder: Path, student: Loaded
):
    engine.load(student_folder, weights_digest(student_folder))
    for prompt, found in zip(PROMPTS, engine.prompt_logprobs(PROMPTS), strict=True):
        expected = dense_logprobs(student.model, prompt).detach()
        assert found[0] is None
        for position, entries in enumerate(found[1:]):
            assert entries is not None
            assert set(entries) == {prompt[position + 1], int(expected[position].argmax())}
            assert entries == pytest.approx({token: float(expected[position, token]) for token in entries}, abs=1e-4)


@pytest.mark.pitfall(
    "after a reload the prefix cache still holds what the old weights computed for a prompt",
    area="vLLM",
    guard="`harness/engines/vllm_process.py` resets the cache",
    evidence="the cache is not reset",
)
def test_what_the_old_weights_computed_of_a_prompt_is_forgotten_with_them(
    engine: VLLMEngine, student_folder: Path, student: Loaded, changed: Path, micro: Suite
):
    prompt = [5 + number % 40 for number in range(CONTEXT - 64)]
    models = {student_folder: load_checkpoint(student_folder, micro.student, "cpu").model, changed: student.model}
    for folder, model in models.items():
        engine.load(folder, weights_digest(folder))
        for _ in range(2):
            (done,) = engine.generate([prompt], Sampling(4, seed=1))
            logprobs = dense_logprobs(model, prompt + done.tokens)[len(prompt) - 1 : -1]
            assert done.logprobs == pytest.approx(logprobs[range(4), done.tokens].tolist(), abs=1e-3)


@pytest.mark.pitfall(
    "lm-eval's vllm class drops the thinking flag when it arrives in chat_template_args",
    area="lm-eval",
    guard="`harness/evaluation/answering.py` renders the prompts for every backend instead of lm-eval's class",
    evidence="lm-eval's class renders, with its flag unset",
)
@pytest.mark.parametrize(("flag", "text"), [(None, "say 0"), (True, "say 0"), (False, "say 0<no thinking>")])
def test_the_thinking_flag_is_in_the_prompts_that_are_asked(
    flag: bool | None, text: str, engine: VLLMEngine, student_folder: Path, tmp_path: Path
):
    (tmp_path / "thinking.jinja").write_text(THINKING)
    write_task(tmp_path / "task")
    chat = Chat(template=str(tmp_path / "thinking.jinja"), enable_thinking=flag)
    asked = ServedCheckpoint(student_folder, weights_digest(student_folder), chat, "float32", "cpu", engine)
    found = cells(tmp_path / "task", asked, tmp_path, "made_up", limit=1)["made_up"]
    assert found.samples["prompt"].tolist() == [text]


@pytest.mark.pitfall(
    "a different version of vLLM gives different scores",
    area="vLLM",
    guard="`harness/evaluation/vllm_model.py` puts the version into the keys, and `pyproject.toml` pins it",
    evidence="the keys leave the version out",
)
def test_vllms_version_is_part_of_what_makes_cells_comparable(
    engine: VLLMEngine, student_folder: Path, library: TaskLibrary, tmp_path: Path
):
    tasks = settled(library, "tiny_weather")
    found = evaluate_checkpoint(
        subject(student_folder, engine), tasks, library, Evaluation(limit=2), SharedCells(tmp_path)
    )
    fields = found["tiny_weather"].summary.keys.fields
    assert fields["backend"].get("vllm") == version("vllm")


@pytest.mark.pitfall(
    "an engine started with a shorter context than the model's cuts answers off silently",
    area="vLLM",
    guard="`harness/evaluation/vllm_model.py` uses the shorter of the two",
    evidence="the model's context is used",
)
def test_an_engine_with_less_context_than_its_model_refuses_what_it_would_cut(
    student_folder: Path, library: TaskLibrary, tmp_path: Path
):
    small = start(student_folder, tmp_path / "vllm.txt", max_model_len=64)
    tasks = settled(library, "tiny_weather", max_gen_toks=60)
    with pytest.raises(TaskError, match=r"context of 64\b"):
        evaluate_checkpoint(subject(student_folder, small), tasks, library, Evaluation(limit=2), SharedCells(tmp_path))
    small.close()


@pytest.mark.pitfall(
    "a script without a main guard that starts vLLM runs a second time and fails",
    area="vLLM",
    guard="`harness/engines/vllm.py` starts one of our modules as a separate process",
    evidence="multiprocessing spawns the process",
)
def test_a_script_without_a_main_guard_may_start_an_engine(student_folder: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(student_folder), str(tmp_path / "vllm.txt")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert len(json.loads(done.stdout)) == 4


@pytest.mark.pitfall(
    "vLLM reports only that its engine core failed to start, and the cause stands far above in its output",
    area="vLLM",
    guard=(
        "`harness/engines/vllm_process.py` runs the core in the same process, and `harness/engines/vllm.py` passes "
        "the original error on"
    ),
    evidence="the core runs in a second process and vLLM's last lines are shown",
)
def test_an_error_inside_the_engines_core_is_shown_with_its_own_cause(student_folder: Path, tmp_path: Path):
    broken = shutil.copytree(student_folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RunError) as caught:
        start(broken, tmp_path / "vllm.txt")
    assert "SafetensorError" in str(caught.value)
    assert "root cause" not in str(caught.value).lower()


@pytest.mark.pitfall(
    "vLLM does not free its memory while its process lives",
    area="vLLM",
    guard="`harness/engines/vllm.py` ends the engine's process when the engine is closed",
    evidence="closing does nothing",
)
def test_a_closed_engine_leaves_no_process_behind(student_folder: Path, tmp_path: Path):
    started = start(student_folder, tmp_path / "vllm.txt")
    before = psutil.Process(started._process.pid)
    processes = [before, *before.children(recursive=True)]
    started.close()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
