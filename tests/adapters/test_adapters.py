"""Adapters by name: entry points, options, and what a suite must give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.aopd import AOPD
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
    assert refusal("aodp").startswith("adapters.aodp: there is no adapter 'aodp'; did you mean 'aopd'? registered are ")


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
    assert found.startswith(f"adapters.gone: the entry point gone = {value} ")
    assert cause in found


def test_an_entry_may_have_a_name_of_its_own():
    made = make_adapter("aopd-official", entry(adapter="aopd", options={"gate": "prob_diff", "threshold": 0.2}))
    assert made == AOPD(gate="prob_diff", threshold=0.2)


def test_unknown_and_wrong_options_are_refused_in_one_sentence_with_their_key():
    unknown = refusal("aopd", options={"treshold": 0.1})
    assert unknown.startswith("adapters.aopd.options.treshold: unknown key; did you mean 'threshold'? expected one of")
    wrong = refusal("aopd", options={"gate": "logratio"})
    assert wrong == "adapters.aopd.options.gate: found 'logratio'; input should be 'log_ratio' or 'prob_diff'"
    assert "set clip too" in refusal("opd", options={"dual_clip": 3.0})


@pytest.mark.parametrize(("name", "needs"), [("opd", "sampled"), ("aopd", "top_k")])
def test_a_method_that_needs_a_teacher_is_refused_where_the_suite_has_none(name: str, needs: str):
    raw = {**micro_suite(), "teacher": None, "adapters": {name: {}}}
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    with pytest.raises(ConfigError) as error:
        check_adapters(Suite.model_validate(raw))
    assert str(error.value) == (
        f"adapters.{name}: needs a teacher ({needs}), but stages tiny_weather, tiny_currency have none; "
        "name one under `teacher`"
    )
    without = Suite.model_validate({**raw, "adapters": {"sft": {}, "none": {}}})
    assert set(check_adapters(without)) == {"sft", "none"}
