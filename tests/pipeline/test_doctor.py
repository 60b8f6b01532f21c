"""The doctor: estimates against real models and runs, and its sentences on a machine and on a suite that does not fit."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from harness.adapter import Requirements
from harness.cli.app import app
from harness.config.load import load_suite
from harness.config.models import Pretrained
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.config.training import Training
from harness.engines.engine import Sampling
from harness.engines.static_decoding import Layout, StaticDecoder
from harness.evaluation.groups import load_evaluation_plan
from harness.lm.trained.recompute import recomputed_layers
from harness.lmeval.library import TaskLibrary
from harness.pipeline.needs.evaluation_estimate import CellRequests, count_requests, evaluation_needs
from harness.pipeline.needs.memory_estimate import ModelShape, shape_of, stage_needs
from harness.pipeline.needs.probe import Probe, build_models, probe_run
from harness.pipeline.needs.run_estimate import RunEstimate, estimate_run, make_fit
from harness.rundir.reader import find_runs
from harness.terminal.byte_sizes import show_bytes
from tests.support.evaluation import write_choices
from tests.support.models import byte_renderer, micro_suite, write_yaml

# Qwen3-8B: 8.19 billion parameters by its card.
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip


def test_parameters_are_counted_as_they_are(student_folder: Path):
    shape = shape_of(Pretrained(kind="pretrained", path=str(student_folder)))
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_recipe_s_shape_is_that_of_the_model_that_is_built(micro: Suite, student_folder: Path):
    assert shape_of(micro.student) == shape_of(Pretrained(kind="pretrained", path=str(student_folder)))


def test_a_large_model_is_counted_without_its_weights(tmp_path: Path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    shape = shape_of(Pretrained(kind="pretrained", path=str(tmp_path)))
    assert shape is not None
    assert shape.parameters == pytest.approx(8.19e9, rel=0.002)


def test_a_model_that_is_not_here_has_no_known_size():
    assert shape_of(Pretrained(kind="pretrained", path="nobody/never-heard-of")) is None


def test_memory_by_hand():
    shape = ModelShape(parameters=1000, vocabulary=50, hidden=8, layers=2, wide=16, queries=8, keys=4)
    training = Training(steps=3, prompts_per_step=4, max_new_tokens=6, micro_batch=2, generation_batch=3)
    needs = stage_needs(
        training, Requirements("top_k", reference=True), shape, replace(shape, parameters=500), prompt=10
    )
    memory = needs.memory
    assert (memory["weights"], memory["gradients"], memory["optimiser"]) == (4000, 4000, 8000)
    assert (memory["reference"], memory["teacher"]) == (4000, 2000)
    assert (
        memory["key-value cache"] == 4 * 3 * 16 * 2 * 2 * 4
    )  # float32, 3 sequences of 16, 2 layers, keys and values of 4
    assert needs.tokens == 3 * 4 * 6
    read, answered = 3 * 4 * 16, 3 * 4 * 6
    assert needs.flops == 6 * 1000 * read + 2 * 1000 * answered + 2 * 500 * read
    assert stage_needs(training, Requirements(), shape, prompt=10, trains=False).peak == 4000


def test_memory_of_large_runs_by_hand():
    """As a student of several GPUs trains: bfloat16 weights, float32 masters, batches by tokens, layers computed again."""
    shape = ModelShape(parameters=8000, vocabulary=50, hidden=8, layers=2, wide=16, queries=8, keys=4)
    large = {"precision": "bfloat16_master", "tokens_per_batch": 40, "activation_checkpointing": True}
    training = Training.model_validate({"steps": 1, "prompts_per_step": 8, "max_new_tokens": 6, **large})
    alone = stage_needs(training, Requirements(), shape, prompt=10)
    assert (alone.memory["weights"], alone.memory["gradients"], alone.memory["optimiser"]) == (48000, 32000, 64000)
    layer = 8 * 8 + 3 * 8 + 4 * 4 + 4 * 16
    assert alone.memory["activations"] == 40 * 2 * (2 * 8 + layer + 2 * 8)
    assert alone.memory["key-value cache"] == 2 * 8 * 16 * 2 * 2 * 4
    assert alone.flops == 8 * 8000 * 8 * 16 + 2 * 8000 * 8 * 6
    four = stage_needs(training, Requirements(), shape, prompt=10, processes=4, generates=False)
    assert (four.memory["weights"], four.memory["gradients"], four.memory["optimiser"]) == (8000, 8000, 16000)
    assert four.memory["activations"] == 32 * 2 * (2 * 8 + layer + 2 * 8)  # a quarter of 8 sequences of 16
    assert (four.memory["whole weights to generate"], four.memory["key-value cache"]) == (16000, 0)
    one = Training.model_validate({**training.model_dump(), "tokens_per_batch": 5})
    assert stage_needs(one, Requirements(), shape, prompt=10).memory["activations"] == 16 * 2 * (2 * 8 + layer + 2 * 8)


def test_an_evaluation_s_needs_by_hand():
    shape = ModelShape(parameters=1000, vocabulary=50, hidden=8, layers=2, wide=16, queries=8, keys=4)
    cells = {
        "sampled": CellRequests(20, 4, 10, 6),
        "greedy": CellRequests(3, 1, 5, 30),
        "scored": CellRequests(40, 1, 12, 0),
    }
    needs = evaluation_needs(cells, shape, batch=32, width=2)
    assert needs.tokens == 20 * 4 * 6 + 3 * 30
    assert needs.flops == 2 * 1000 * (needs.tokens + 20 * 10 + 3 * 5 + 40 * 12)
    layer = 8 * 8 + 3 * 8 + 4 * 4 + 4 * 16
    assert needs.memory == {
        "weights": 2 * 1000,
        "activations": 2 * 32 * 12 * (layer + 8),  # of the scored texts; 20 prompts of 10 tokens are fewer
        "logits": 2 * 4 * 50 * 32 * 12,
        "key-value cache": 2 * 32 * 16 * 2 * 2 * 4,
        "sampling": 3 * 4 * 50 * 32,
    }
    elsewhere = evaluation_needs(cells, shape, batch=32, width=2, generates=False)
    assert (elsewhere.memory["key-value cache"], elsewhere.memory["sampling"]) == (0, 0)
    assert elsewhere.memory["logits"] == needs.memory["logits"], "lm-eval scores in this process"


def test_an_evaluation_asks_what_lm_eval_asks(tmp_path: Path):
    rows = write_choices(tmp_path)
    library = TaskLibrary([tmp_path])
    task = library.load("tiny_arithmetic")
    renderer = byte_renderer()
    asked = count_requests(task, renderer, 4, 512)
    longest = max(len(renderer.encode_prompt(task.render(doc, renderer))) for doc in task.test_docs(4))
    assert asked == CellRequests(4, 1, longest, task.generation["max_gen_toks"])
    choosing = library.load("made_up")
    longest = len(renderer.encode_prompt(choosing.render(rows[0], renderer) + "monday"))
    assert count_requests(choosing, renderer, 5, 512) == CellRequests(5 * 3, 1, longest, 0)


def test_the_cache_of_an_evaluation_is_that_of_its_engine(student_folder: Path):
    """The engine's first layout has room for some columns; with the longest answers it grows to what is estimated."""
    spec = Pretrained(kind="pretrained", path=str(student_folder))
    shape, model = shape_of(spec), AutoModelForCausalLM.from_pretrained(student_folder)
    assert shape is not None
    held: list[int] = []

    class Measured(StaticDecoder):
        def _step(self, layout: Layout) -> None:
            layers: list[Any] = layout.cache.layers
            tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
            held.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
            super()._step(layout)

    prompts = [[5, 6, 7, 8]] * 3
    with torch.no_grad():
        Measured(model, None, Sampling(28, temperature=0)).run(prompts, torch.zeros(3, dtype=torch.long))
    assert max(held) == evaluation_needs({"a": CellRequests(3, 1, 4, 28)}, shape, 8, 4).memory["key-value cache"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_as_torch_keeps_them(checkpointing: bool, student_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(student_folder, attn_implementation="sdpa")
    shape = shape_of(Pretrained(kind="pretrained", path=str(student_folder)))
    assert shape is not None
    tokens, own = 96, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held: list[Any] = []  # so that no storage is freed and counted for another one
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), keep(t))[1], lambda t: t):
        if not checkpointing:
            model.model(input_ids=torch.randint(3, 200, (1, tokens)), use_cache=False)
        else:
            with recomputed_layers(model, True):
                model.model(input_ids=torch.randint(3, 200, (1, tokens)), use_cache=False)
    training = Training(prompts_per_step=1, max_new_tokens=tokens - 1, activation_checkpointing=checkpointing)
    estimated = stage_needs(training, Requirements(), shape, prompt=1).memory["activations"]
    if checkpointing:  # the layer that is computed again is not among the kept
        estimated -= 4 * tokens * (8 * shape.hidden + 3 * shape.queries + 4 * shape.keys + 4 * shape.wide)
    print(f"kept {sum(kept.values())}, estimated {estimated}")
    assert estimated == pytest.approx(sum(kept.values()), rel=0.15)


def test_adam_s_states_are_as_torch_holds_them(student_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    optimiser = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    optimiser.step()
    states = [value for state in optimiser.state.values() for value in state.values() if value.dim()]
    held = sum(value.numel() * value.element_size() for value in states)
    shape = shape_of(Pretrained(kind="pretrained", path=str(student_folder)))
    assert shape is not None
    assert stage_needs(Training(), Requirements(), shape, prompt=8).memory["optimiser"] == held


def estimate(suite: Suite, entry: str = "opd") -> tuple[RunEstimate, Any]:
    evaluated = load_evaluation_plan(TaskLibrary(), suite)
    found = estimate_run(RunSpec(suite, entry, 0), evaluated, None)
    assert isinstance(found, RunEstimate)
    return found, evaluated.tasks


def test_what_does_not_fit_is_named_with_the_setting_that_makes_it_fit(micro: Suite):
    found, tasks = estimate(micro)
    small = make_fit(found, 0.9 * found.largest.peak, tasks, None)
    assert re.search(r"--set training\.micro_batch=\d", small)
    none = make_fit(found, 1000, tasks, None)
    assert "no batch size" in none
    assert "--set" not in none


def test_a_setting_that_makes_it_fit_does(micro: Suite, tmp_path: Path):
    found, tasks = estimate(micro)
    available = 0.9 * found.largest.peak
    words = make_fit(found, available, tasks, None).split()
    settings = [word for word in words if "=" in word]
    changed = load_suite(str(write_yaml(tmp_path / "micro.yaml", micro_suite())), settings)
    assert estimate(changed)[0].largest.peak <= available


def test_a_batch_with_which_an_evaluation_fits_is_named(micro: Suite):
    evaluation = micro.evaluation.model_copy(update={"batch_size": 4096, "limit": 2000})
    large = micro.model_copy(update={"evaluation": evaluation})
    found, tasks = estimate(large)
    assert found.evaluation.peak > found.largest.peak
    sentence = make_fit(found, 1.01 * found.largest.peak, tasks, None)
    assert "--set evaluation.batch_size=" in sentence
    size = int(sentence.rpartition("=")[2])
    smaller = {"evaluation": evaluation.model_copy(update={"batch_size": size})}
    assert estimate(large.model_copy(update=smaller))[0].peak <= 1.01 * found.largest.peak


def test_sizes_are_shown_with_three_digits():
    assert [show_bytes(size) for size in (2**20, 3 * 2**30, 2000 * 2**30)] == ["1 MiB", "3 GiB", "2,000 GiB"]


def test_the_doctor_looks_at_the_machine_alone(tmp_path: Path):
    done = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    for what in ("packages", "extra ray", "processor", "GPU", "disk for runs", "offline by HF_HUB_OFFLINE"):
        assert what in done.output
    assert not (tmp_path / "runs").exists()


def test_the_doctor_estimates_a_suite_without_writing(micro_file: Path, tmp_path: Path):
    arguments = ["doctor", str(micro_file), "--probe-minutes", "0", "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    for what in ("optimiser", "key-value cache", "built here, weak", "no probe", "disk:", "tiny_weather"):
        assert what in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        pytest.param(
            {"kind": "server", "model": "m", "urls": ["http://127.0.0.1:9"]},
            "teacher did not answer within 3 seconds",
            marks=pytest.mark.slow,
        ),
        (
            {"kind": "server", "model": "m", "start": {"command": ["no-such-program"]}},
            "no-such-program is not installed",
        ),
        ({"kind": "server", "model": "m", "start": {"command": [sys.executable]}}, "each command starts it with"),
        ({"kind": "cache", "path": "/nowhere/scores.db"}, "holds no scores"),
    ],
)
def test_the_doctor_asks_servers_and_stores(teacher: dict[str, Any], expected: str, tmp_path: Path):
    suite = micro_suite() | {"teacher": teacher, "storage": f"file://{tmp_path}/bucket"}
    arguments = ["doctor", str(write_yaml(tmp_path / "micro.yaml", suite)), "--adapter", "opd", "--probe-minutes", "0"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "runs")], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert expected in done.output
    assert "takes stages and leases" in done.output
    assert not list((tmp_path / "bucket").rglob("try-*"))


def test_the_doctor_names_what_is_unknown_without_the_model(tmp_path: Path):
    suite = micro_suite() | {"student": {"kind": "pretrained", "path": "nobody/never-heard-of"}}
    done = CliRunner().invoke(app, ["doctor", str(write_yaml(tmp_path / "micro.yaml", suite))])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "hf download nobody/never-heard-of" in text
    assert "not estimated" in text


@pytest.mark.slow
def test_a_probe_s_memory_is_that_of_the_run(tmp_path: Path):
    """The run is a separate process, as a user starts it."""
    raw = micro_suite() | {"training": {**micro_suite()["training"], "steps": 30}}
    raw["evaluation"] = {**raw["evaluation"], "limit": 40}
    file = write_yaml(tmp_path / "micro.yaml", raw)
    suite = load_suite(str(file))
    spec = RunSpec(suite, "aopd", 0, out=tmp_path / "runs")
    build_models(spec, print)
    probe = probe_run(spec, load_evaluation_plan(TaskLibrary(), suite), 5)
    assert isinstance(probe, Probe), probe
    program = "from harness.cli.app import main; main()"
    words = ["run", str(file), "--adapter", "aopd", "--out", str(spec.out), "--no-report"]
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True)
    (found,) = find_runs([spec.path])
    times = probe.times
    assert sum(times.stages.values()) == pytest.approx(times.train, rel=0.05)
    assert list(times.stages) == [stage.name for stage in spec.stages]
    print(f"estimated {probe}, took {found.seconds} and {found.peak_memory}")
    assert probe.peak_train == pytest.approx(found.peak_memory["train"], rel=0.15)
    assert probe.peak_evaluate == pytest.approx(found.peak_memory["evaluate"], rel=0.15)
    # Times depend on the neighbours of this machine: an order of magnitude is all that a test may ask.
    assert times.total == pytest.approx(found.seconds["total"], rel=2)


def test_a_probe_that_does_not_end_is_reported(micro: Suite, tmp_path: Path):
    plan = load_evaluation_plan(TaskLibrary(), micro)
    found = probe_run(RunSpec(micro, "opd", 0, out=tmp_path), plan, 0.0001)
    assert isinstance(found, str)
    assert "--probe-minutes" in found


@pytest.mark.slow
def test_a_probe_writes_nothing_to_the_store_and_counts_answers_that_a_run_uses_again_once(tmp_path: Path):
    raw = {**micro_suite(), "adapters": {"none": {}}, "stages": micro_suite()["stages"][:1]}
    suite = load_suite(str(write_yaml(tmp_path / "micro.yaml", raw | {"storage": f"file://{tmp_path}/bucket"})))
    spec = RunSpec(suite, "none", 0, out=tmp_path / "runs")
    probe = probe_run(spec, load_evaluation_plan(TaskLibrary(), suite), 5)
    assert isinstance(probe, Probe), probe
    assert not (tmp_path / "bucket").exists(), "a run would take the probe for itself"
    assert probe.times.total == pytest.approx(probe.took, abs=0.01), "all items were measured, and no step is trained"
