"""Every task file: loads in lm-eval, states its settings, and runs under the bare `lm_eval` command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from tests.support.task_files import (
    ROOT,
    SHARED_DATA,
    TASKS,
    TINY,
    boxed_folder,
    load_task,
    needs_shared_data,
    tiny_task,
)

NO_TASKS = ("suites", "studies")
FILES = sorted(path for path in TASKS.rglob("*.yaml") if path.relative_to(TASKS).parts[0] not in NO_TASKS)
BOXED = ["math_boxed"]
# A file whose documents are generated needs no records; of the others, these tests know where records are.
GENERATED = [path.stem for path in FILES if "data_seed" in load_yaml(path)["metadata"]]
REAL = [path for path in FILES if path.stem.startswith(("gsm8k", "toolalpaca"))]
REAL_DATA = {
    "gsm8k": str(SHARED_DATA / "gsm8k"),
    "toolalpaca_eval": str(SHARED_DATA / "toolalpaca/eval_simulated.json"),
}


def test_lm_eval_indexes_every_file():
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert {path.stem for path in FILES} == set(manager.all_tasks)
    assert set(TINY) <= set(GENERATED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_states_its_settings(path: Path):
    config = load_yaml(path)
    settings, harness = config["generation_kwargs"], config["metadata"]["harness"]
    assert config["task"] == path.stem
    assert config["output_type"] == "generate_until"
    assert config["num_fewshot"] == 0
    assert config["target_delimiter"] == ""
    assert isinstance(settings["until"], list)
    assert settings["until"]
    assert settings["do_sample"] is False
    assert settings["temperature"] == 0.0
    assert settings["max_gen_toks"] > 0
    for metric in config["metric_list"]:
        assert metric["aggregation"] == "mean"
        assert metric["higher_is_better"] is (metric["metric"] != "timed_out")
    assert harness["metric"] in {metric["metric"] for metric in config["metric_list"]}
    assert harness["capability"] == path.relative_to(TASKS).parts[0]
    assert harness["training_target"] == "target"
    assert "version" in config["metadata"]
    json.dumps(config["metadata"])


@pytest.mark.pitfall(
    "lm-eval calls a function that loads records with all of the metadata and with config_source as keyword arguments",
    area="lm-eval",
    guard="the shipped loaders take `**_`, for example `tasks/tools/requests.py`",
    evidence="a loader lacks `**_`",
)
@pytest.mark.parametrize("name", GENERATED)
def test_generated_tasks_load_and_render(name: str):
    task = tiny_task(name)
    doc = task.test_docs()[0]
    assert task.doc_to_text(doc) == doc["prompt"]
    assert task.doc_to_target(doc) == doc["target"]
    assert set(task.process_results(doc, [doc["target"]])) == set(task.aggregation())


@pytest.mark.realdata
@needs_shared_data
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_tasks_load_and_grade_their_references(path: Path):
    task = load_task(path.stem, data=REAL_DATA)
    for doc in task.test_docs():
        grades = task.process_results(doc, [task.doc_to_target(doc)])
        assert grades["strict"] == 1
        assert set(grades) == set(task.aggregation())


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random Qwen3 model of a few thousand parameters with a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {piece: i for i, piece in enumerate(["<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=8192, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_generated_tasks_run_under_bare_lm_eval(tiny_model: Path, tmp_path: Path):
    _run_lm_eval(GENERATED, tiny_model, tmp_path)


@pytest.mark.slow
def test_tasks_with_local_records_run_under_bare_lm_eval(tiny_model: Path, tmp_path: Path):
    """Boxed answers, and the tasks whose real records lie next to the project where they do."""
    data = {name: str(boxed_folder(tmp_path)) for name in BOXED} | (REAL_DATA if SHARED_DATA.exists() else {})
    names = BOXED + [path.stem for path in REAL if SHARED_DATA.exists()]
    _run_lm_eval(names, tiny_model, tmp_path / "out", "--metadata", json.dumps({"data": data}))


def _run_lm_eval(names: list[str], model: Path, output: Path, *more: str) -> None:
    command = [sys.executable, "-m", "lm_eval", "--include_path", "tasks", "--tasks", ",".join(names), "--model", "hf"]
    command += ["--model_args", f"pretrained={model}", "--device", "cpu", "--limit", "2"]
    command += ["--gen_kwargs", "max_gen_toks=32", "--output_path", str(output), *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (written,) = output.rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    assert set(results) == set(names)
    assert all(0 <= results[name]["strict,none"] <= 1 for name in names)
