"""Studies: which runs a plan holds, how the base run is shared, what is refused, and what the command does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli.app import main
from harness.config.base import digest
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.study_file import STUDY_FOLDER, Factor, Study, load_study
from harness.errors import ConfigError
from harness.pipeline.sweeps.study_runs import MOST_RUNS, Plan, Point, plan_study
from harness.pipeline.sweeps.sweep import models_of
from harness.rundir.store import is_finished
from tests.support.reports.run_factory import SEED_SECONDS, write_finished
from tests.support.reports.study_factory import constant, study

RATES: dict[str, Any] = {"title": "Rate", "key": "training.optimizer.lr", "values": [1.0e-4, 2.0e-4]}
METHODS: dict[str, Any] = {"title": "Method", "entries": ["none", "opd"]}
STARTS: dict[str, Any] = {"title": "Start", "key": "student.strength", "values": ["weak", "strong"]}


def names(plan: Plan) -> set[str]:
    return {str(spec.path.relative_to(spec.out)) for spec in plan.specs}


def test_the_base_run_is_shared_by_all_factors_that_hold_its_value(tmp_path: Path):
    plan = study(tmp_path, {"method": METHODS, "rate": RATES}, seeds=[0])
    assert names(plan) == {
        "tiny/none/default/seed0",
        "tiny/opd/default/seed0",
        "tiny/aopd/default/seed0",
        "tiny-rate-0.0001/opd/default/seed0",
        "tiny-rate-0.0001/aopd/default/seed0",
    }
    assert len(plan.points) == 6
    shared = [point.factor for point in plan.points if point.spec.path.parts[-4:-2] == ("tiny", "opd")]
    assert shared == ["method", "rate"]


def test_a_factor_may_add_the_entry_and_the_order_that_it_varies(tmp_path: Path):
    entry = {"adapter": "aopd", "options": {"top_k": 16}}
    order = ["tiny_calendar", "tiny_currency", "tiny_weather", "tiny_arithmetic"]
    factors = {
        "top_k": {"title": "K", "fixed": {"adapters.aopd_k16": entry}, "entries": ["aopd", "aopd_k16"]},
        "order": {"title": "Order", "fixed": {"orders": {"back": order}}, "entries": ["opd"], "orders": ["back"]},
    }
    assert names(study(tmp_path, factors, seeds=[0])) == {
        "tiny/aopd/default/seed0",
        "tiny-top_k/aopd_k16/default/seed0",
        "tiny-order/opd/back/seed0",
    }


def test_a_value_changes_the_suite_and_nothing_but_it(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES}, seeds=[0])
    changed, base = (point.spec for point in plan.points if point.spec.entry == "opd")
    assert changed.suite.training.optimizer.lr == 1e-4
    settings = changed.suite.model_dump()
    settings["training"]["optimizer"]["lr"], settings["name"] = 2e-4, "tiny"
    for stage in settings["stages"]:
        stage["training"]["optimizer"]["lr"] = 2e-4
    assert settings == base.suite.model_dump()
    assert digest(changed.config()) != digest(base.config())


def test_fixed_keys_are_set_at_every_value(tmp_path: Path):
    factor = {
        "title": "T",
        "fixed": {"adapters.aopd.options.gate": "prob_diff"},
        "key": "adapters.aopd.options.threshold",
        "values": [-1.0, 0.2],
        "entries": ["aopd"],
    }
    plan = study(tmp_path, {"threshold": factor}, seeds=[0])
    options = [point.spec.suite.adapters["aopd"].options for point in plan.points]
    assert options == [{"gate": "prob_diff", "threshold": -1.0}, {"gate": "prob_diff", "threshold": 0.2}]


def test_an_entry_that_the_key_does_not_touch_is_the_base_run(tmp_path: Path):
    key = "adapters.aopd.options.threshold"
    plan = study(tmp_path, {"threshold": {"title": "T", "key": key, "values": [0.2, 0.5]}}, seeds=[0])
    assert names(plan) == {
        "tiny/opd/default/seed0",
        "tiny-threshold-0.2/aopd/default/seed0",
        "tiny-threshold-0.5/aopd/default/seed0",
    }


def test_two_factors_that_reach_one_configuration_share_a_run(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES, "speed": {**RATES, "values": [1.0e-4]}}, seeds=[0])
    assert len(plan.points) == 6
    assert not [name for name in names(plan) if "speed" in name]


def test_values_are_set_as_the_file_gives_them(tmp_path: Path):
    factor = {"title": "T", "key": "adapters.aopd.options.threshold", "values": [1.0e-5], "entries": ["aopd"]}
    plan = study(tmp_path, {"threshold": factor}, seeds=[0])
    assert plan.specs[0].suite.adapters["aopd"].options == {"threshold": 1e-5}


def test_seeds_come_one_after_another_so_that_a_stopped_study_holds_whole_comparisons(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES}, seeds=[0, 1])
    assert [spec.seed for spec in plan.specs] == [0] * 4 + [1] * 4


def test_overrides_reach_every_run(tmp_path: Path):
    study(tmp_path, {"rate": RATES}, seeds=[0])
    plan = plan_study(str(tmp_path / "trial.yaml"), ["training.steps=5"], tmp_path / "runs")
    assert {spec.suite.training.steps for spec in plan.specs} == {5}
    assert plan.base.training.steps == 5


@pytest.mark.parametrize(
    ("against", "references"),
    [
        ({}, {"none": "opd", "opd": None, "aopd": "opd"}),
        ({"against": "aopd"}, {"none": "aopd", "opd": "aopd", "aopd": None}),
        ({"against": {"aopd": "opd"}}, {"none": None, "opd": None, "aopd": "opd"}),
    ],
)
def test_a_factor_of_entries_says_what_each_is_compared_with(against: dict, references: dict[str, str | None]):
    factor = Factor(title="Method", entries=("none", "opd", "aopd"), **against)
    named = {"name": "trial", "title": "Trial", "suite": "tiny", "seeds": (0,), "minutes_per_run": 1}
    study = Study(entries=("opd", "aopd"), factors={"method": factor}, **named)
    assert {entry: study.reference(entry, factor) for entry in references} == references
    assert study.contrasts == [("aopd", "opd")]


@pytest.mark.parametrize("name", sorted(file.stem for file in STUDY_FOLDER.glob("*.yaml")))
def test_shipped_studies_are_valid_and_small_enough(name: str, tmp_path: Path):
    plan = plan_study(name, (), tmp_path)
    assert load_study(name).name == name
    assert 0 < len(plan.specs) <= MOST_RUNS
    assert not repeated(plan), "two runs of a study are the same run under two names"
    drawn = {
        each.training.prompts_per_step * each.training.num_generations for spec in plan.specs for each in spec.stages
    }
    assert drawn == {64}, "responses of a step, as in the published pages"
    sweep = RunSpec(load_suite("tiny", ["@short"]), "opd", 0, out=tmp_path)
    assert sweep.path not in {spec.path for spec in plan.specs}, "`make stage-all` and the study have one folder"


def repeated(plan: Plan) -> list[str]:
    """Return the runs whose configuration, its name aside, an earlier run of the plan has."""
    seen: set[tuple[str, str, str]] = set()
    found = []
    for spec in plan.specs:
        kind = (spec.entry, spec.order, digest({**spec.config(), "name": ""}))
        found += [str(spec.path)] if kind in seen else []
        seen.add(kind)
    return found


def test_a_run_under_two_names_would_be_noticed(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES}, seeds=[0])
    spec = plan.specs[0]
    twin = replace(spec, suite=spec.suite.model_copy(update={"name": "tiny-twin"}))
    assert repeated(replace(plan, points=(*plan.points, Point("rate", 1e-4, twin)))) == [str(twin.path)]


@pytest.mark.parametrize(
    ("factors", "changes", "words"),
    [
        ({"rate": RATES}, {"seeds": list(range(400))}, ["1600 runs", "at most 400"]),
        ({"method": {"title": "M", "entries": ["opd", "mine"]}}, {}, ["no adapter 'mine'", "aopd, sft, none"]),
        ({"order": {"title": "O", "orders": ["default", "backwards"]}}, {}, ["'backwards'", "tools_first"]),
        ({"rate": {**RATES, "key": "training.optimizer.rate"}}, {}, ["training.optimizer.rate"]),
        ({"rate": {**RATES, "valus": [1]}}, {}, ["valus"]),
        ({"rate": {"title": "R", "key": "training.steps"}}, {}, ["key and values go together"]),
        ({}, {}, ["factors"]),
        ({"rate": RATES}, {"seeds": []}, ["seeds", "at least 1"]),
        ({"rate": RATES}, {"seeds": [0, 1, 0]}, ["seeds", "names 0 twice"]),
        ({"rate": RATES}, {"entries": ["opd", "opd"]}, ["entries", "names 'opd' twice"]),
        ({"rate": {**RATES, "seeds": []}}, {}, ["seeds", "at least 1"]),
        ({"rate": {**RATES, "entries": []}}, {}, ["entries", "at least 1"]),
        ({"rate": {**RATES, "orders": []}}, {}, ["orders", "at least 1"]),
        ({"rate": {**RATES, "values": [1.0e-4, 2.0e-4, 1.0e-4]}}, {}, ["names 0.0001 twice"]),
        (
            {
                "gate": {
                    "title": "G",
                    "key": "adapters.aopd.options.gate",
                    "values": ["a b", "a_b"],
                    "entries": ["aopd"],
                }
            },
            {},
            ["'a_b' and 'a b' would both run in", "rename"],
        ),
        ({"rate": RATES}, {"suite": "huge"}, ["huge"]),
        ({"rate": {**RATES, "against": "opd"}}, {}, ["`against`", "entries alone"]),
        ({"method": {**METHODS, "against": "aopd"}}, {}, ["method.against names 'aopd'", "none, opd"]),
        ({"method": {**METHODS, "against": {"none": "sft"}}}, {}, ["method.against names 'sft'"]),
    ],
)
def test_mistakes_are_refused_in_one_sentence(tmp_path: Path, factors: dict, changes: dict, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, factors, **{"seeds": [0], **changes})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_an_unknown_study_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"'nothing'; .*\btiny\b"):
        load_study("nothing")


def test_the_estimate_is_the_study_s_until_a_run_has_noted_its_own_time(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES}, seeds=[0])
    assert plan.minutes(2) == pytest.approx(4 * 2.0 / 2)
    assert "4 of 4 runs" in plan.cost(2)
    spec = plan.specs[0]
    write_finished(spec, constant(spec, 0.8, 0.5))
    assert is_finished(spec)
    assert plan.minutes(1) == pytest.approx(3 * (SEED_SECONDS - 30) / 60)
    assert "3 of 4 runs" in plan.cost(1)
    assert "1,080 training steps" in plan.cost(1)


def test_models_of_all_suites_are_built_each_once(tmp_path: Path):
    plan = study(tmp_path, {"rate": RATES, "start": STARTS}, seeds=[0])
    built = [(spec, getattr(model, "strength", None), seed) for spec, model, seed in models_of(plan.specs).values()]
    assert [(strength, seed) for _, strength, seed in built] == [("teacher", 1000), ("weak", 0), ("strong", 0)]
    assert [getattr(spec.suite.student, "strength", None) for spec, *_ in built[1:]] == ["weak", "strong"]


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study of two runs in an empty folder."""
    plan = study(tmp_path, {"rate": {**RATES, "values": [2.0e-4]}}, seeds=[0])
    monkeypatch.chdir(tmp_path)
    return plan


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harness", "study", "trial.yaml", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_study_that_takes_too_long_is_refused_before_it_starts(
    trial: Plan, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    assert command(monkeypatch, "--max-hours", "0.01", "--workers", "1") == 2
    captured = capsys.readouterr()
    assert re.search(r"2 of 2 runs .*\b720 training steps, about 4 minutes ", captured.out)
    assert "more than --max-hours 0.01" in captured.err
    assert not Path("runs").exists()


def test_a_dry_run_lists_the_runs_and_writes_nothing(trial: Plan, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    before = sorted(Path().rglob("*"))
    assert command(monkeypatch, "--dry-run") == 0
    assert "runs/tiny/aopd/default/seed0" in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


def test_a_finished_study_only_renders(trial: Plan, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    for spec in trial.specs:
        write_finished(spec, constant(spec, 0.8, 0.5))
    monkeypatch.setattr("harness.pipeline.sweeps.sweep.sweep", lambda *_: pytest.fail("nothing is left to run"))
    assert command(monkeypatch) == 0
    assert "all 2 runs are finished" in capsys.readouterr().out
    assert Path("runs/study-trial.md").is_file()


def test_a_study_of_no_finished_run_has_no_page(trial: Plan, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert command(monkeypatch, "--render-only") == 2
    assert "has no finished run" in capsys.readouterr().err
    assert not Path("runs/study-trial.md").exists()


def test_another_suite_s_results_do_not_replace_the_study_s_page(
    trial: Plan, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr("harness.pipeline.sweeps.sweep.sweep", lambda *_: pytest.fail("refused only after the runs"))
    assert command(monkeypatch, "--set", "training.steps=5") == 2
    assert "runs/study-trial.md" in (error := capsys.readouterr().err)
    assert "--page runs/study.md" in error
    assert not Path("runs/study-trial.md").exists()


def test_the_page_prints_the_command_that_makes_it(trial: Plan, monkeypatch: pytest.MonkeyPatch):
    changed = plan_study("trial.yaml", ["training.steps=5"], Path("made here"))
    for spec in changed.specs:
        write_finished(spec, constant(spec, 0.8, 0.5))
    arguments = ("--set", "training.steps=5", "--out", "made here", "--page", "five.md")
    assert command(monkeypatch, *arguments, "--render-only") == 0
    line = "Command: harness study trial.yaml --out 'made here' --set training.steps=5 --page five.md"
    assert line in Path("five.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_study_trains_what_is_left_and_writes_its_page(
    micro_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    content = {
        "name": "trial",
        "title": "A trial",
        "suite": str(micro_file),
        "entries": ["opd", "aopd"],
        "seeds": [0],
        "minutes_per_run": 0.1,
        "factors": {"rate": {**RATES, "values": [1.0e-3, 2.0e-3]}},
    }
    monkeypatch.chdir(tmp_path)
    Path("trial.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert command(monkeypatch, "--workers", "1") == 0
    assert "run 4 of 4" in capsys.readouterr().out
    page = Path("runs/study-trial.md").read_text(encoding="utf-8")
    assert "4 runs of 4 steps each" in page
    assert command(monkeypatch) == 0
    assert "all 4 runs are finished" in capsys.readouterr().out
