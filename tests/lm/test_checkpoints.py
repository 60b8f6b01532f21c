"""Checkpoints that do not fit, cannot be read or bring their own code are refused; what is saved loses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.models import Chat, Pretrained
from harness.config.suite import Suite
from harness.errors import ModelError
from harness.lm import checkpoints
from harness.lm.chat import Renderer
from harness.lm.checkpoints import (
    allow_own_code,
    check_weights,
    config_digest,
    load_checkpoint,
    load_model,
    load_renderer,
    save_checkpoint,
    weights_digest,
)
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer


@pytest.fixture
def folder(student_folder: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, for damage."""
    return Path(shutil.copytree(student_folder, tmp_path / "copy"))


def spec(folder: Path, **chat: Any) -> Pretrained:
    return Pretrained(kind="pretrained", path=str(folder), chat=Chat(template="chatml", **chat))


def change_tensors(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensor = tensors.pop(name)
    changed = {
        "missing": {},
        "renamed": {"model.layers.0.mlp.down_proj.weightx": tensor},
        "extra": {name: tensor, "model.layers.7.mlp.down_proj.weight": tensor.clone()},
        "reshaped": {name: tensor[:1].clone()},
    }
    save_file({**tensors, **changed[change]}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("change", ["missing", "renamed", "extra", "reshaped"])
@pytest.mark.parametrize("read", [lambda f: load_model(f, torch.float32), check_weights], ids=["loaded", "checked"])
def test_a_checkpoint_whose_tensors_are_not_those_of_its_configuration_is_refused(change: str, read: Any, folder: Path):
    read(folder)
    change_tensors(folder, change)
    with pytest.raises(ModelError, match=r"config\.json: model\.layers\.\d\.mlp\.down_proj"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "qwen3", "hidden_size": "wide"}'),
        ("config.json", b"{\xff"),
        ("generation_config.json", b"{"),
        ("tokenizer.json", b'{"model": 3}'),
    ],
)
def test_a_damaged_file_of_a_checkpoint_is_one_sentence_with_its_name(file: str, content: bytes, folder: Path):
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_checkpoint(folder, spec(folder), "cpu")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_weights_are_named(folder: Path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    for read in (weights_digest, check_weights):
        with pytest.raises(ModelError, match=r"copy/model\.safetensors: "):
            read(folder)


def test_a_folders_own_code_is_not_run_and_nobody_is_asked(folder: Path, tmp_path: Path):
    (folder / "own.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    for read in (config_digest, check_weights):
        with pytest.raises(ModelError):
            read(folder)
    assert not (tmp_path / "RAN").exists()


def test_a_suite_that_asks_for_a_folders_own_code_gets_it_wherever_the_folder_is_read(folder: Path, tmp_path: Path):
    classes = (
        "from transformers import Qwen3Config, Qwen3ForCausalLM\nclass Config(Qwen3Config):\n    model_type = 'own'\n"
    )
    (folder / "own.py").write_text(f"{classes}class Model(Qwen3ForCausalLM):\n    config_class = Config\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    allow_own_code(True)
    try:
        check_weights(folder)
        loaded = load_checkpoint(folder, spec(folder), "cpu")
        assert type(loaded.model).__name__ == "Model"
        save_checkpoint(loaded, tmp_path / "saved")
        assert config_digest(tmp_path / "saved")
        assert type(load_checkpoint(tmp_path / "saved", spec(folder), "cpu").model).__name__ == "Model"
    finally:
        allow_own_code(False)
    with pytest.raises(ModelError):
        config_digest(tmp_path / "saved")


def test_a_checkpoint_is_read_for_its_digest_once_and_again_when_it_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = weights_digest(folder)
    monkeypatch.setattr(checkpoints, "safe_open", lambda *_, **__: pytest.fail("read again"))
    assert weights_digest(folder) == before
    monkeypatch.undo()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert weights_digest(folder) != before


def test_a_generation_configuration_that_transformers_does_not_save_survives_training(folder: Path, tmp_path: Path):
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.9, "top_p": 0.6}))
    loaded = load_checkpoint(folder, spec(folder), "cpu")
    save_checkpoint(loaded, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", spec(folder), "cpu")
    assert (again.model.generation_config.temperature, again.model.generation_config.top_p) == (0.9, 0.6)
    assert again.model.generation_config.eos_token_id == list(loaded.renderer.stop_ids)
    assert weights_digest(tmp_path / "saved") == weights_digest(folder)


def test_every_end_that_a_checkpoint_names_stops_an_answer_and_is_saved(folder: Path, tmp_path: Path, micro: Suite):
    path, tokenizer = folder / "generation_config.json", load_renderer(folder, spec(folder)).tokenizer
    eos, other = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [other, eos, 10**6]}))
    loaded = load_checkpoint(folder, spec(folder), "cpu")
    assert loaded.renderer.stop_ids == (eos, other), "without ids that the tokenizer does not have"
    save_checkpoint(loaded, tmp_path / "saved")
    assert load_renderer(tmp_path / "saved", spec(folder)).stop_ids == (eos, other)
    assert load_renderer(folder, spec(folder, stop=("<|endoftext|>",))).stop_ids == (other,), (
        "what a suite names decides"
    )


def test_a_target_ends_with_the_stop_token_that_the_template_writes():
    tokenizer = byte_tokenizer()
    ids: Any = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    end, turn = ids
    tokenizer.eos_token = "<|endoftext|>"
    renderer = Renderer(tokenizer, Chat(template="chatml"), eos=[end, turn])
    assert renderer.stop_ids == (turn, end)
    assert renderer.encode_targets(["5"], [""])[0][-1] == turn


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within 1 second",
        ),
        ("{{ 'a' * (10**7 + 1) }}", "wrote 10,000,001 characters"),
        ("{{ raise_exception('no system turn') }}", "conversation of user .no system turn."),
    ],
)
def test_a_template_that_does_not_end_or_refuses_is_stopped(
    template: str, sentence: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.lm.chat.TEMPLATE_SECONDS", 1.0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=sentence):
        Renderer(tokenizer, Chat()).render([{"role": "user", "content": "hello"}])
