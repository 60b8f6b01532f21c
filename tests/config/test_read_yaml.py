"""Suite files that can only be a mistake, or an attack, are refused in one sentence; what YAML 1.1 guesses is not guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config.load import load_suite
from harness.config.read_yaml import parse_yaml
from harness.config.study_file import load_study
from harness.errors import ConfigError
from tests.support.models import micro_suite, write_yaml


def refusal(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_suite(str(path))
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nseeds: [0]\nname: b\n", "line 3: not valid YAML (key 'name' "),
        ("training: {steps: 1, steps: 2}\n", "key 'steps' appears twice"),
        (BOMB, "aliases expand to"),
        ("name: &a {b: *a}\n", "alias of itself"),
        ("stages: &a [*a]\n", "alias of itself"),
        ("[" * 20_000, "too deep"),
        ("name: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("name: [\n", "not valid YAML"),
    ],
    ids=["key twice", "inner key twice", "bomb", "circle", "circular list", "depth", "code", "cut off"],
)
def test_a_file_that_can_only_be_a_mistake_is_refused(text: str, sentence: str, tmp_path: Path):
    assert sentence in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("training.optimizer.lr=true", "training.optimizer.lr: found 'true'"),
        ("training.steps=yes", "training.steps: found 'yes'"),
        ("seeds=[true]", "seeds.0: found 'true'"),
        ("training.optimizer.lr=.inf", "training.optimizer.lr: found inf"),
        ("training.temperature=.nan", "training.temperature: found nan"),
        ("training.optimizer.lr=inf", "training.optimizer.lr: found 'inf'"),
        ("evaluation.decoding.until=['']", "evaluation.decoding.until.0: found ''"),
        ("student.chat.stop=['']", "student.chat.stop.0: found ''"),
    ],
)
def test_a_number_is_a_finite_number_and_a_stop_string_has_characters(override: str, place: str, micro_file: Path):
    with pytest.raises(ConfigError) as refused:
        load_suite(str(micro_file), [override])
    assert place in str(refused.value)


@pytest.mark.parametrize("name", ["../../out", "a/b", ".hidden", "..", "", "a\tb", "a\\b", "x" * 300])
@pytest.mark.parametrize("place", ["adapters", "orders", "stages", "probes", "profiles", "name"])
def test_no_name_of_a_suite_becomes_a_path(place: str, name: str, tmp_path: Path):
    raw: dict[str, Any] = micro_suite()
    if place == "stages":
        raw["stages"] = [name]
    elif place == "probes":
        raw["probes"] = [name]
    elif place == "name":
        raw["name"] = name
    elif place == "orders":
        raw["orders"] = {name: [stage if isinstance(stage, str) else stage["task"] for stage in raw["stages"]]}
    elif place == "profiles":
        raw["evaluation"] = {**raw.get("evaluation", {}), "profiles": {name: {}}}
    else:
        raw["adapters"] = {name: {"adapter": "opd"}}
    with pytest.raises(ConfigError):
        load_suite(str(write_yaml(tmp_path / "mine.yaml", raw)))


def test_words_stay_words_and_aliases_become_copies():
    assert parse_yaml("[yes, no, on, off, 1:30, 010, 2024-01-02]") == [
        "yes", "no", "on", "off", "1:30", "010", "2024-01-02",
    ]  # fmt: skip
    assert parse_yaml("[true, False, 12, -3, 1.5, null, 1_000]") == [True, False, 12, -3, 1.5, None, 1000]
    read = parse_yaml("base: &b {x: 1}\nother: *b\nmerged: {<<: *b, x: 2, y: 3}\n")
    assert read == {"base": {"x": 1}, "other": {"x": 1}, "merged": {"x": 2, "y": 3}}
    read["base"]["x"] = 5
    assert read["other"]["x"] == 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text("abc xyz:-#", max_size=8),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=4), below, max_size=3)
    ),
    max_leaves=12,
)


@given(plain)
def test_what_yaml_writes_is_read_back(value: Any):
    assert parse_yaml(yaml.safe_dump(value)) == value


def test_studies_are_read_as_strictly(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: not valid YAML"):
        load_study(str(path))
