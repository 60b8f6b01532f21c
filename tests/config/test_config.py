"""What a suite may say: laid over each other key by key, known by a digest, nonsense refused, all without torch."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config.base import digest, merge
from harness.config.suite import Stage, Suite
from harness.config.training import Optimizer, Training
from tests.support.models import micro_suite

WITHOUT_TORCH = """
import sys
import harness.config.suite, harness.config.load
harness.config.load.load_suite("tiny")
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "transformers", "lm_eval", "datasets", "pandas"}, loaded
"""

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
TREES: Any = st.recursive(
    LEAVES, lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=4), max_leaves=9
)
MAPPINGS: Any = st.dictionaries(st.sampled_from("abcd"), TREES, max_size=4)


def test_reading_suites_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_merge_replaces_key_by_key_below_and_whole_values_elsewhere():
    base = {"lr": 1, "optimizer": {"lr": 2, "eps": 3}, "list": [1, 2]}
    changes = {"optimizer": {"lr": 4}, "list": [5], "new": {"a": 6}}
    assert merge(base, changes) == {"lr": 1, "optimizer": {"lr": 4, "eps": 3}, "list": [5], "new": {"a": 6}}


@given(MAPPINGS, MAPPINGS)
def test_merging_changes_neither_side_and_nothing_the_second_time(base: Any, changes: Any):
    before = deepcopy((base, changes))
    once = merge(base, changes)
    assert (base, changes) == before
    assert merge(once, changes) == once
    assert merge(base, {}) == base
    assert merge({}, changes) == changes
    assert set(once) == set(base) | set(changes)


def reordered(value: Any) -> Any:
    return {key: reordered(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


@given(MAPPINGS, MAPPINGS)
def test_digests_know_content_and_not_key_order(one: Any, other: Any):
    assert digest(one) == digest(reordered(one))
    # 1 and True are equal in Python and different in JSON, so compare as text
    assert (digest(one) == digest(other)) == (repr(_sorted(one)) == repr(_sorted(other)))
    assert len(digest(one)) == 16
    assert int(digest(one), 16) >= 0


def _sorted(value: Any) -> Any:
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value


def test_a_digest_stays_what_it_is():
    # first 16 digits of the SHA-256 of {"a": 1, "b": [2, "é"]}
    assert digest({"b": [2, "é"], "a": 1}) == "472f942117488b5b"


def suite(**changes: Any) -> Suite:
    raw = {**micro_suite(), **changes}
    raw["stages"] = [stage if isinstance(stage, dict) else {"task": stage, "training": {}} for stage in raw["stages"]]
    return Suite.model_validate(raw)


def test_the_defaults_are_the_papers():
    training, optimizer = Training(), Optimizer()
    assert (optimizer.lr, optimizer.weight_decay, optimizer.grad_clip, optimizer.schedule) == (
        1e-5,
        0.01,
        1.0,
        "constant",
    )
    assert (training.prompts_per_step, training.num_generations, training.temperature) == (512, 1, 1.0)
    assert training.max_new_tokens == 2048


def test_settings_cannot_be_changed_after_reading():
    with pytest.raises(ValidationError, match="frozen"):
        suite().name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_tasks_are_the_stages_then_the_probes():
    assert suite().tasks == ("tiny_weather", "tiny_currency", "tiny_reminder")


def test_orders_are_the_files_or_a_named_permutation():
    found = suite(orders={"reverse": ["tiny_currency", "tiny_weather"]})
    assert [stage.task for stage in found.ordered_stages()] == ["tiny_weather", "tiny_currency"]
    assert [stage.task for stage in found.ordered_stages("reverse")] == ["tiny_currency", "tiny_weather"]
    with pytest.raises(ValueError, match=r"order 'revers' .*default, joint, reverse"):
        found.ordered_stages("revers")


def test_the_joint_order_is_one_stage_over_all_tasks_with_all_their_steps():
    found = suite(adapters={"opd": {}, "short": {"adapter": "opd", "training": {"steps": 1}}})
    (joint,) = found.ordered_stages("joint")
    assert joint.task == "joint"
    assert joint.trains == ("tiny_weather", "tiny_currency")
    assert found.training_for(joint, "opd").steps == sum(found.training_for(s, "opd").steps for s in found.stages)
    assert found.training_for(joint, "short").steps == 2


def test_a_joint_stage_needs_stages_that_train_alike():
    raw = micro_suite()
    hot = {"task": "tiny_currency", "training": {**raw["training"], "temperature": 0.5}}
    stages = [{"task": "tiny_weather", "training": raw["training"]}, hot]
    with pytest.raises(ValueError, match="tiny_weather and tiny_currency differ in teacher or training"):
        suite(stages=stages).ordered_stages("joint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["a", "b", "a"]}, "stages train a more than once"),
        ({"probes": ["tiny_weather"]}, "probes tiny_weather are also trained"),
        ({"orders": {"x": ["tiny_weather"]}}, r"order 'x' is \['tiny_weather'\], .*permutation of \["),
        ({"orders": {"x": ["tiny_weather"] * 2}}, "expected a permutation"),
        (
            {"stages": [{"task": "tiny_weather", "training": {}, "together": ["tiny_currency"]}, "tiny_weather"]},
            "tiny_weather more than once",
        ),
        (
            {"stages": [{"task": "tiny_reminder", "training": {}, "together": ["tiny_currency"]}]},
            "stage tiny_reminder .*another name",
        ),
        ({"orders": {"joint": ["tiny_currency", "tiny_weather"]}}, "'joint' is the order"),
        ({"stages": []}, "at least 1 item"),
        ({"adapters": {}}, "at least 1 item"),
        ({"seeds": []}, "at least 1 item"),
        ({"name": "a/b"}, "should match pattern"),
        ({"device": "gpu"}, "'gpu'.*auto, cpu or cuda"),
    ],
)
def test_suites_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        suite(**changes)


def test_a_strength_that_the_recipe_does_not_name_is_refused():
    student = {**micro_suite()["student"], "strength": "strong"}
    with pytest.raises(ValidationError, match="strength 'strong' is not one of weak"):
        suite(student=student)


def test_a_strength_limits_items_of_its_own_mixture_only():
    student = micro_suite()["student"]
    student["warmup"]["strengths"]["weak"]["items"] = {"tiny_calendar": 3}
    with pytest.raises(ValidationError, match=r"strength 'weak' .*tiny_calendar, .*mixture lacks"):
        suite(student=student)


def test_an_entrys_training_overlays_the_stages():
    found = suite(
        stages=[{"task": "a", "training": {"steps": 7, "optimizer": {"lr": 0.5, "weight_decay": 0.25}}}],
        adapters={"opd": {}, "slow": {"adapter": "opd", "training": {"optimizer": {"lr": 0.1}}}},
    )
    stage: Stage = found.stages[0]
    plain, slow = found.training_for(stage, "opd"), found.training_for(stage, "slow")
    assert (plain.steps, plain.optimizer.lr, plain.optimizer.weight_decay) == (7, 0.5, 0.25)
    assert (slow.steps, slow.optimizer.lr, slow.optimizer.weight_decay) == (7, 0.1, 0.25)
