"""Suite files: every shipped one loads, and every mistake is one sentence with file, key, what was found and expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.load import SUITE_FOLDER, find_suite, load_suite
from harness.config.models import Scratch
from harness.config.study_file import load_study
from harness.config.suite import Suite
from harness.errors import ConfigError
from tests.support.models import micro_suite, write_yaml

SHIPPED = sorted(SUITE_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_suite_loads_under_its_name(path: Path):
    try:
        suite = load_suite(path.stem)
    except ConfigError as error:
        if str(error).startswith("data."):
            pytest.skip(str(error))
        raise
    assert suite.name == path.stem
    assert suite.stages
    for stage in suite.stages:
        for entry in suite.adapters:
            suite.training_for(stage, entry)


def test_the_short_form_of_tiny_does_the_same_with_less():
    whole, short = load_suite("tiny"), load_suite("tiny", ["@short"])
    assert short.name == "tiny-short"
    assert (short.tasks, short.adapters, short.seeds) == (whole.tasks, whole.adapters, whole.seeds)
    assert short.evaluation.profiles == whole.evaluation.profiles
    assert [stage.task for stage in short.stages] == [stage.task for stage in whole.stages]
    for less, more in zip(short.stages, whole.stages, strict=True):
        assert 3 * less.training.steps <= 2 * more.training.steps
    for less, more in ((short.student, whole.student), (short.teacher, whole.teacher)):
        assert isinstance(less, Scratch)
        assert isinstance(more, Scratch)
        assert less.architecture.layers < more.architecture.layers
    assert short.evaluation.limit == 100


def test_the_embedded_default_is_among_them():
    assert "tiny" in {path.stem for path in SHIPPED}


def load(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, *overrides: str) -> Suite:
    raw = micro_suite()
    change(raw)
    return load_suite(str(write_yaml(folder / "suite.yaml", raw)), overrides)


def refusal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, *overrides: str) -> str:
    """Return the sentence that refuses a changed suite."""
    with pytest.raises(ConfigError) as error:
        load(folder, change, *overrides)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "validation error" not in sentence
    return sentence


def test_a_typo_is_named_with_its_place_and_the_nearest_key(tmp_path: Path):
    found = refusal(tmp_path, lambda raw: raw["student"]["warmup"].update(batch_sise=4))
    expected = (
        "student.warmup.batch_sise: unknown key; did you mean 'batch_size'? expected one of autocast, batch_size,"
    )
    assert found.startswith(f"{tmp_path / 'suite.yaml'}: {expected}")


def test_the_students_start_chooses_a_stages_training(tmp_path: Path):
    starts = {"weak": {"steps": 7}, "strong": {"epochs": 2}}
    stage = {"task": "tiny_weather", "training": {"prompts_per_step": 3}, "starts": starts}
    path = str(write_yaml(tmp_path / "suite.yaml", {**micro_suite(), "stages": [stage]}))
    weak = load_suite(path).stages[0].training
    assert (weak.steps, weak.prompts_per_step, weak.max_new_tokens) == (7, 3, 24)
    named = ["student={kind: pretrained, path: Qwen/Qwen3-0.6B-Base, start: strong}"]
    strong = load_suite(path, named).stages[0].training
    assert (strong.epochs, strong.prompts_per_step) == (2, 3)
    with pytest.raises(ConfigError, match=r"stages\.0\.starts .*weak, strong, .*'medium'"):
        load_suite(path, [*named, "student.start=medium"])
    with pytest.raises(ConfigError, match=r"both set steps; .*starts\.weak"):
        load_suite(path, ["stages.0.training.steps=5"])


@pytest.mark.parametrize(
    ("change", "key", "told"),
    [
        (lambda raw: raw.update(stagess=[]), "stagess: ", "'stages'? expected one of adapters, backend,"),
        (
            lambda raw: raw["training"].update(stpes=3),
            "training.stpes: ",
            "'steps'? expected one of activation_checkpointing,",
        ),
        (
            lambda raw: raw["stages"].__setitem__(0, {"task": "tiny_weather", "trainin": {}}),
            "stages.0.trainin: ",
            "'training'? expected one of adapter, task, teacher, together,",
        ),
        (
            lambda raw: raw["adapters"]["opd"].update(optoins={}),
            "adapters.opd.optoins: ",
            "'options'? expected one of adapter, options, training",
        ),
        (
            lambda raw: raw["adapters"]["opd"].update(training={"stpes": 1}),
            "adapters.opd.training.stpes: ",
            "'steps'? expected one of activation_checkpointing,",
        ),
        (
            lambda raw: raw["adapters"]["opd"].update(training={"optimizer": {"lr": -1}}),
            "adapters.opd.training.optimizer.lr: found -1; ",
            "greater than 0",
        ),
        (lambda raw: raw["training"].update(steps="many"), "training.steps: found 'many'; ", "integer"),
        (lambda raw: raw["training"].update(steps=0), "training.steps: found 0; ", "greater than 0"),
        (lambda raw: raw.pop("name"), "name: missing", "required"),
        (lambda raw: raw.pop("student"), "student: missing", "required"),
        (lambda raw: raw["student"].pop("strength"), "student.strength: missing", "required"),
        (lambda raw: raw.update(stages="tiny_weather"), "stages: found 'tiny_weather'; ", "tuple"),
        (lambda raw: raw["stages"].append("tiny_weather"), "stages train tiny_weather", "more than once"),
        (lambda raw: raw["probes"].append("tiny_weather"), "probes tiny_weather", "also trained"),
        (lambda raw: raw.update(orders={"x": ["tiny_weather"]}), "order 'x' is ['tiny_weather'], ", "permutation"),
    ],
)
def test_each_mistake_is_one_sentence_with_file_and_key(
    change: Callable[[dict[str, Any]], object], key: str, told: str, tmp_path: Path
):
    found = refusal(tmp_path, change)
    assert found.startswith(f"{tmp_path / 'suite.yaml'}: {key}")
    assert told in found


def test_several_mistakes_show_the_first_and_how_many_more(tmp_path: Path):
    found = refusal(tmp_path, lambda raw: raw.update(seeds="x", threads="y", device="z"))
    assert found.endswith("(2 more to fix after this)")


def test_a_mistake_in_the_suites_training_counts_once_not_again_in_each_stage(tmp_path: Path):
    found = refusal(tmp_path, lambda raw: raw["training"].update(stpes=3))
    assert "more to fix" not in found
    found = refusal(tmp_path, lambda raw: raw.update(training={"stpes": 3}, threads="y"))
    assert found.endswith("(1 more to fix after this)")


def test_stages_given_on_the_command_line_take_further_overrides(tmp_path: Path):
    suite = load(tmp_path, lambda _: None, "stages=[tiny_currency, tiny_weather]", "stages.1.training.steps=7")
    assert [(stage.task, stage.training.steps == 7) for stage in suite.stages] == [
        ("tiny_currency", False),
        ("tiny_weather", True),
    ]


def test_the_keys_named_are_those_of_the_kind_of_model(tmp_path: Path):
    found = refusal(tmp_path, lambda raw: raw["student"].update(path="elsewhere"))
    assert "student.path: " in found
    assert "expected one of architecture, chat, dtype, kind, seed, strength" in found


def test_yaml_that_does_not_parse_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    path.write_text("name: x\nstudent: [1, 2\nstages: y\n")
    with pytest.raises(ConfigError) as error:
        load_suite(str(path))
    assert str(error.value).startswith(f"{path} line 3: not valid YAML (")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"suite.yaml: not valid YAML \(.*invalid start byte\)"):
        load_suite(str(path))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path):
    path = tmp_path / "suite.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    for read in (load_suite, load_study):
        with pytest.raises(ConfigError, match=r"suite.yaml: not valid YAML \(.*can't decode byte 0xe9"):
            read(str(path))


def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path):
    path = write_yaml(tmp_path / "suite.yaml", ["a"])
    with pytest.raises(ConfigError, match=r"found list, .*name, student, stages, adapters"):
        load_suite(str(path))


def test_missing_suites_are_refused_with_where_was_looked(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no/such\.yaml does not exist"):
        load_suite("no/such.yaml")
    with pytest.raises(ConfigError, match=r"'tinny'; .*\btiny\b"):
        load_suite("tinny")


def test_suites_in_included_folders_are_found_by_name_before_the_shipped_ones(tmp_path: Path):
    below = write_yaml(tmp_path / "suites" / "mine.yaml", micro_suite())
    own = write_yaml(tmp_path / "tiny.yaml", micro_suite())
    assert find_suite("mine", [tmp_path]) == below
    assert find_suite("tiny", [tmp_path]) == own
    assert find_suite("tiny") == (SUITE_FOLDER / "tiny.yaml").resolve()


def test_a_file_of_settings_is_applied_in_its_place(tmp_path: Path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more/records.json").write_text("[]")
    many = {"training.steps": 7, "stages.0.training": {"steps": 9}, "data.mine": "records.json", "seeds": [4]}
    file = write_yaml(tmp_path / "more/settings.yaml", many)
    suite = load(tmp_path, lambda _: None, "training.steps=5", f"@{file}", "seeds=[5]")
    assert (suite.training.steps, suite.stages[0].training.steps, suite.seeds) == (7, 9, (5,))
    assert suite.data == {"mine": str(tmp_path / "more/records.json")}
    with pytest.raises(ConfigError, match=r"expected a YAML file .*@stand-in"):
        load(tmp_path, lambda _: None, "@stand-inn")


def test_overrides_reach_mappings_lists_and_new_keys(tmp_path: Path):
    sets = (
        "training.optimizer.lr=1e-4", "stages.1=tiny_calendar", "seeds=[3, 4]", "teacher=null", "evaluation.limit=2",
        "adapters.opd.options.weight=1.25", "student.warmup.strengths.weak.steps=5", "adapters.opd.training.steps=9",
    )  # fmt: skip
    suite = load(tmp_path, lambda _: None, *sets)
    assert suite.training.optimizer.lr == 1e-4
    assert [stage.task for stage in suite.stages] == ["tiny_weather", "tiny_calendar"]
    assert suite.stages[0].training.optimizer.lr == 1e-4
    assert suite.seeds == (3, 4)
    assert suite.teacher is None
    assert suite.evaluation.limit == 2
    assert suite.adapters["opd"].options == {"weight": 1.25}
    assert suite.training_for(suite.stages[0], "opd").steps == 9
    assert suite.training_for(suite.stages[0], "aopd").steps == 2


@pytest.mark.parametrize(
    ("override", "place", "told"),
    [
        ("training.steps", "--set training.steps: ", "--set training.optimizer.lr=1e-4"),
        ("=3", "--set =3: ", "KEY=VALUE"),
        ("name.x=3", "--set name.x=3: 'micro' ", "no key 'x'"),
        ("name.x.y=3", "--set name.x.y=3: 'micro' ", "no key 'x'"),
        ("stages.2=tiny_calendar", "--set stages.2=tiny_calendar: '2' ", "a list of 2"),
        ("stages.first=x", "--set stages.first=x: 'first' ", "a list of 2"),
        ("stages.7.task=x", "--set stages.7.task=x: '7' ", "a list of 2"),
        ("seeds=[1", "--set seeds=[1: ", "not valid YAML"),
        ("training.steps=few", "training.steps: found 'few'; ", "integer"),
        ("training.stpes=3", "training.stpes: ", "'steps'?"),
        ("trainig.steps=3", "trainig: ", "'training'?"),
    ],
)
def test_overrides_that_cannot_be_are_one_sentence(override: str, place: str, told: str, tmp_path: Path):
    found = refusal(tmp_path, lambda _: None, override)
    assert found.removeprefix(f"{tmp_path / 'suite.yaml'}: ").startswith(place)
    assert told in found


def test_a_stages_training_overlays_the_suites(tmp_path: Path):
    def change(raw: dict[str, Any]) -> None:
        raw["training"] = {"steps": 5, "optimizer": {"lr": 0.5, "weight_decay": 0.25}}
        raw["stages"][1] = {"task": "tiny_currency", "training": {"optimizer": {"lr": 0.1}}}
        raw["adapters"] = {"opd": {}, "long": {"adapter": "opd", "training": {"steps": 9}}}

    suite = load(tmp_path, change)
    first, second = suite.stages
    assert (first.training.steps, first.training.optimizer.lr) == (5, 0.5)
    assert (second.training.steps, second.training.optimizer.lr, second.training.optimizer.weight_decay) == (
        5,
        0.1,
        0.25,
    )
    long = suite.training_for(second, "long")
    assert (long.steps, long.optimizer.lr, long.optimizer.weight_decay) == (9, 0.1, 0.25)


def test_relative_paths_count_from_the_suite_file_and_missing_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path / "elsewhere")

    def change(raw: dict[str, Any]) -> None:
        raw["data"] = {"gsm8k": "records"}
        raw["include"] = ["records"]
        raw["student"]["chat"] = {"template": "mine.jinja"}

    suite = load(tmp_path, change)
    assert suite.data == {"gsm8k": str(tmp_path / "records")}
    assert suite.include == (str(tmp_path / "records"),)
    assert suite.student.chat.template == str(tmp_path / "mine.jinja")
    found = refusal(tmp_path, lambda raw: raw.update(data={"gsm8k": "recrods"}))
    assert found.startswith(f"data.gsm8k: {tmp_path / 'recrods'} does not exist; ")
    assert found.endswith("--set data.gsm8k=/absolute/path")


def test_a_named_template_is_not_taken_for_a_file(tmp_path: Path):
    assert load(tmp_path).student.chat.template == "chatml"
