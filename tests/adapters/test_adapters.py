"""Adapters by name: entry points, options, and what a suite must give them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adapters.aopd import AOPD
from adapters.commands.adapter_list import adapter_table
from harness.adapter import make_adapter, registered
from harness.config.suite import AdapterEntry, Suite
from harness.errors import ConfigError
from harness.pipeline.adapter_checks import check_adapters
from tests.support.models import micro_suite
from tests.support.packages import declare


def test_the_shipped_adapters_are_registered():
    assert {"none", "sft", "opd", "aopd"} <= set(registered())


def entry(**fields: Any) -> AdapterEntry:
    return AdapterEntry.model_validate(fields)


def refusal(name: str, **fields: Any) -> str:
    with pytest.raises(ConfigError) as error:
        make_adapter(name, entry(**fields))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_adapter_is_refused_with_the_nearest_name():
    assert re.match(r"adapters\.aodp: .*'aodp'; .*'aopd'", refusal("aodp"))


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("adapters.opd:Opd", "'Opd'"),
        ("pathlib:Path", "is not a subclass of Adapter"),
    ],
)
def test_an_entry_point_that_is_not_an_adapter_is_refused_by_name(
    value: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    declare("broken", {"harness.adapters": {"gone": value}}, tmp_path, monkeypatch)
    found = refusal("gone")
    assert found.startswith("adapters.gone: ")
    assert f"gone = {value} " in found
    assert cause in found


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("class X(:", "SyntaxError: "),
        (
            "from adapters import LoopAdapter\n\n\nclass X(LoopAdapter):\n    def token_loss(self, tokens): ...\n",
            "does not define token_losses",
        ),
        (
            "from typing import ClassVar\nfrom adapters.opd import OPD\n\n\n"
            "class X(OPD):\n    teacher_needs: ClassVar = 'top-k'\n",
            "X.teacher_needs is 'top-k', expected one of none, sampled, top_k",
        ),
    ],
    ids=["raises", "syntax", "misspelt method", "misspelt need"],
)
def test_a_mistake_in_the_module_of_another_package_is_one_sentence_and_the_list_goes_on(
    module: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    declare("broken", {"harness.adapters": {"gone": "broken_adapter:X"}}, tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "broken_adapter", raising=False)
    (tmp_path / "broken_adapter.py").write_text(module, encoding="utf-8")
    assert cause in refusal("gone")
    console = Console(width=2000, record=True)
    console.print(adapter_table())
    listed = console.export_text()
    assert cause in listed
    assert "aopd" in listed


def test_a_name_that_two_packages_register_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    declare("mine", {"harness.adapters": {"opd": "mine:Mine"}}, tmp_path, monkeypatch)
    found = refusal("opd")
    assert "'opd'" in found
    assert "adapters.opd:OPD (continual-harness) and mine:Mine (mine)" in found


def test_a_class_without_a_docstring_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    declare("bare", {"harness.adapters": {"bare": "bare_adapter:X"}}, tmp_path, monkeypatch)
    module = "from adapters.opd import OPD\n\n\nclass X(OPD):\n    pass\n"
    (tmp_path / "bare_adapter.py").write_text(module, encoding="utf-8")
    console = Console(width=2000, record=True)
    console.print(adapter_table())
    assert "bare" in console.export_text()


def test_an_entry_may_have_a_name_of_its_own():
    made = make_adapter("aopd-official", entry(adapter="aopd", options={"gate": "prob_diff", "threshold": 0.2}))
    assert made == AOPD(gate="prob_diff", threshold=0.2)


def test_unknown_and_wrong_options_are_refused_in_one_sentence_with_their_key():
    unknown = refusal("aopd", options={"treshold": 0.1})
    assert re.match(r"adapters\.aopd\.options\.treshold: .*'threshold'", unknown)
    wrong = refusal("aopd", options={"gate": "logratio"})
    assert re.fullmatch(r"adapters\.aopd\.options\.gate: found 'logratio'; .*'log_ratio' or 'prob_diff'", wrong)
    assert "set clip too" in refusal("opd", options={"dual_clip": 3.0})


@pytest.mark.parametrize(("name", "needs"), [("opd", "sampled"), ("aopd", "top_k")])
def test_a_method_that_needs_a_teacher_is_refused_where_the_suite_has_none(name: str, needs: str):
    raw = {**micro_suite(), "teacher": None, "adapters": {name: {}}}
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    with pytest.raises(ConfigError) as error:
        check_adapters(Suite.model_validate(raw))
    expected = rf"adapters\.{name}: .*\({needs}\), .*tiny_weather, tiny_currency .*`teacher`"
    assert re.fullmatch(expected, str(error.value))
    without = Suite.model_validate({**raw, "adapters": {"sft": {}, "none": {}}})
    assert set(check_adapters(without)) == {"sft", "none"}
