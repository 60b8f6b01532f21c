"""Secrets in options, URLs and diffs stay out of the manifest, and nothing else is hidden."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.config.suite import Suite
from harness.rundir.process.secrets import MASK, holds_secret, mask, mask_text, mask_words
from harness.rundir.process.session import this_session

SECRETS = (
    *("sk-proj-abcdEFGH1234", "hf_abcdefghijklmnop", "ghp_abcdefghijklmnop1234", "AKIAABCDEFGHIJKLMNOP"),
    *("xoxb-1234567890-abc", "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl"),
)


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "plain"],
        ["--api-key=plain"],
        ["--set", "teacher.token=plain"],
        ["HF_TOKEN=plain", "python"],
        ["--password", "plain"],
        ["https://user:plain@host/x"],
        ["--url", "https://plain@host/x"],
    ],
)
def test_values_of_telling_options_are_masked(words: list[str]):
    masked = mask_words(["harness", *words, "--seed", "0"])
    assert "plain" not in " ".join(masked)
    assert MASK in " ".join(masked)
    assert masked[-2:] == ["--seed", "0"]


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_of_known_shapes_are_masked_wherever_they_stand(secret: str):
    value = {"options": {"note": f"use {secret} here", "command": ["run", secret], "nested": [{"x": secret}]}}
    assert secret not in str(mask(value))
    assert secret not in mask_text(f"x {secret} y")
    assert holds_secret(f"+    client = connect('{secret}')")


def test_a_telling_key_masks_its_text_and_numbers_stay():
    options = {"api_key": "plain", "max_tokens": 5, "token": "plain", "tokenizer": "byte", "keys": 3, "secret": ""}
    assert mask(options) == {
        **{"api_key": MASK, "max_tokens": 5, "token": MASK, "tokenizer": "byte", "keys": 3, "secret": ""}
    }


def test_ordinary_configuration_and_code_are_not_hidden(micro: Suite):
    config = micro.model_dump(mode="json")
    assert mask(config) == config
    code = "key = digest([keys.generation, keys.grading])\ntokens: int = 0\n+    token = next(tokens)\n"
    assert not holds_secret(code)
    for file in Path("harness").rglob("*.py"):
        assert not holds_secret(file.read_text(encoding="utf-8")) or file.name == "secrets.py", file


@pytest.mark.parametrize(("line", "kept"), [("x = 1", True), ("key = 'sk-SECRET-IN-DIFF'", False)])
def test_a_diff_is_recorded_only_where_it_is_clean(
    line: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "harness" / "rundir" / "process"
    package.mkdir(parents=True)
    (package / "session.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (package / "session.py").write_text(f"{line}\n")
    monkeypatch.setattr("harness.rundir.process.session.__file__", str(package / "session.py"))
    found = this_session().git
    assert found.dirty
    assert (line in (found.diff or "")) == kept
    assert (found.diff_left_out is None) == kept
