"""Claims as data: what the grammar takes and refuses, and how a file's mistakes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.stats.estimates import Estimate
from reports.claims.claim_file import claim_metrics, metric_units, read_claims
from reports.claims.grammar import Metric, parse
from tests.support.reports.claim_factory import write_claims

VALUES = {
    Metric("aopd", "learned"): Estimate({0: 0.6, 1: 0.8, 2: 0.7}),
    Metric("opd", "learned"): Estimate({0: 0.5, 1: 0.4}),
    Metric("opd", "final"): Estimate({0: 0.0, 1: 0.2}),
}


def effect(text: str) -> list[float]:
    return list(parse(text).effect(VALUES.__getitem__).by_seed.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metric(aopd, learned) > metric(opd, learned)", [0.1, 0.4]),
        ("metric('aopd', \"learned\") < 0", [0.6, 0.8, 0.7]),
        ("metric(aopd, learned) > metric(opd, learned) * 2 + 0.1", [-0.5, -0.1]),
        ("(metric(aopd, learned) - metric(opd, learned)) / 2 > -0.25", [0.3, 0.45]),
        ("metric(opd, learned) / metric(opd, final) > 0", [2.0]),
        ("metric(opd, learned) / 0 > 0", []),
        ("0 < metric(aopd, learned)", [-0.6, -0.8, -0.7]),
    ],
)
def test_an_effect_is_left_minus_right_over_the_seeds_that_all_have(text: str, expected: list[float]):
    assert effect(text) == pytest.approx(expected)


def test_the_comparison_gives_the_direction():
    assert [parse(f"metric(a, learned) {sign} 0").sign for sign in "><"] == [1, -1]


HOSTILE = [
    "__import__('os').system('true') > 0",
    "metric(a, learned).__class__ > 0",
    "metric.__globals__ > 0",
    "metric(a, learned) > open('/etc/passwd')",
    "metric(*a, learned) > 0",
    "metric(a, learned, **b) > 0",
    "metric(a, learned, start=weak, stop=1) > 0",
    "metric(a) > 0",
    "metric(metric(a, learned), learned) > 0",
    "metric(a, f'{b}') > 0",
    "metric(a, learned)[0] > 0",
    "[metric(a, learned) for _ in b] > 0",
    "(lambda: 1)() > metric(a, learned)",
    "(x := metric(a, learned)) > 0",
    "metric(a, learned) if 1 else 2 > 0",
    "metric(a, learned) > 9 ** 9 ** 9 ** 9",
    "metric(a, learned) > 1 << 99",
    "metric(a, learned) > 10000000000",
    "metric(a, learned) > 1e999",
    "metric(a, learned) > 1j",
    "metric(a, learned) > True",
    "metric(a, learned) > 'text'",
    "metric(a, learned) > other",
    "metric(a, learned) > +1",
    "metric(a, learned) > not 1",
    "metric(a, learned) % 2 > 0",
    "metric(a, learned) // 2 > 0",
    "metric(a, learned) @ 2 > 0",
    "metric(a, learned) >= 0",
    "metric(a, learned) == 0",
    "0 < metric(a, learned) < 1",
    "metric(a, learned) > 0 and 1",
    "metric(a, learned)",
    "1 > 0",
    "metric(a, learned) > 0; import os",
    "import os",
    "",
    "(" * 300 + "1" + ")" * 300 + " > metric(a, learned)",
    "-" * 400 + "1 > metric(a, learned)",
    "metric(a, learned) > " + "1 + " * 400 + "1",
    "metric(a, learned) > 1\x00",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_whatever_is_not_part_of_the_grammar_is_refused(text: str):
    if text.startswith("-" * 400):  # long, and harmless
        assert parse(text).left
        return
    with pytest.raises(
        ValueError, match=r"expected one comparison|is allowed|are allowed|not allowed|is not a name|larger than"
    ):
        parse(text)


@given(st.text(max_size=600))
@example("metric(a, learned) > 0")
def test_any_text_is_an_expression_or_a_value_error(text: str):
    try:
        found = parse(text)
    except ValueError:
        return
    assert found.metrics


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"expression": "__import__('os') > 0"},
            r"claims\.yaml: claim learns: claims\.0\.expression: .*__import__",
        ),
        (
            {"expression": "metric(aopd, learnt) > 0"},
            r"claim learns: claims\.0: .*'learnt'; .*\bfinal\b",
        ),
        (
            {"expression": "metric(aopd, intransigence) < 0"},
            r"claim learns: claims\.0: .*'intransigence'; .*\bfinal\b",
        ),
        ({"scope": {}}, r"metric 'learned' .*scope\.tasks"),
        ({"unit": "percent"}, r"claim learns: claims.0.unit: found 'percent'"),
        ({"smallest_effect": -1}, r"claim learns: claims.0.smallest_effect: found -1"),
        ({"margin": 0}, r"claim learns: claims.0.margin: found 0"),
        (
            {"at": "equal_learning", "expression": "metric(aopd, learned) > 0"},
            r"at: equal_learning .*one metric of two adapters",
        ),
        (
            {"scope": {"tasks": ["first"], "rate": "best"}, "expression": "metric(aopd, learned) > metric(opd, final)"},
            r"scope\.rate: best .*one metric of two adapters",
        ),
        ({"at": "equal_learning"}, "at: equal_learning .*kept, probe_change or changed"),
        (
            {"expression": "metric(aopd, kept) > metric(opd, kept)", "scope": {}},
            r"metric kept .*at: equal_learning\b",
        ),
        ({"scope": {"stage": "branch", "tasks": ["first"]}}, r"scope\.stage: branch .*learning curves"),
        ({"scope": {"tasks": ["before"]}}, r"scope\.tasks: \[before\] .*scope\.stage: branch"),
        ({"scope": {"start": "pairs", "tasks": ["first"]}}, r"scope\.start: pairs"),
        (
            {"expression": "metric(aopd, learned, start=weak) > metric(opd, learned)"},
            "'weak'.*scope.start",
        ),
        ({"scop": {}}, "claim learns: claims.0.scop: unknown key"),
        (
            {"expression": "metric(aopd, entropy) > metric(opd, entropy)"},
            "in nats and unit is points",
        ),
        (
            {"expression": "metric(aopd, entropy) > metric(opd, learned)"},
            "compares nats and points",
        ),
        ({"expression": "metric(aopd, entropy) * metric(opd, learned) > 0"}, "it multiplies nats by points"),
        ({"expression": "1 / metric(opd, learned) > 0"}, "it divides a number by points"),
    ],
)
def test_a_mistake_names_file_claim_and_key(tmp_path: Path, change: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        read_claims(write_claims(tmp_path, change))


@pytest.mark.parametrize(
    ("expression", "unit"),
    [
        ("metric(aopd, learned) > 2 * metric(opd, learned) - 0.1", "points"),
        ("metric(aopd, learned) / metric(opd, final) > 1", "ratio"),
        ("metric(aopd, learned) / metric(opd, final) * metric(aopd, truncated_share) > 0.1", "points"),
        ("-metric(aopd, entropy_last) / 2 < 0", "nats"),
    ],
)
def test_the_unit_is_the_metrics(expression: str, unit: str):
    assert parse(expression).unit(metric_units()) == unit


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"primary": ["learnt"]}, "primary .*'learnt', .*learns, b, c, d"),
        ({"primary": ["b", "b"]}, "primary names 'b' twice"),
        ({"primary": ["learns", "b", "c", "d"]}, "primary"),
        ({"primary": ["d"]}, r"primary claim d\b.*scope\.tasks"),
    ],
)
def test_the_sequence_holds_up_to_three_claims_each_one_test(tmp_path: Path, keys: dict[str, Any], sentence: str):
    several = {"name": "d", "scope": {"tasks": ["each"]}}
    with pytest.raises(ConfigError, match=sentence):
        read_claims(write_claims(tmp_path, {}, {"name": "b"}, {"name": "c"}, several, **keys))


def test_a_missing_key_a_broken_file_and_a_name_given_twice(tmp_path: Path):
    with pytest.raises(ConfigError, match="two claims are called 'learns'"):
        read_claims(write_claims(tmp_path, {}, {}))
    file = tmp_path / "other.yaml"
    file.write_text("title: x\nsource: y\nclaims: [{name: a}]\n")
    with pytest.raises(ConfigError, match=r"other.yaml: claim a: claims.0.text: missing"):
        read_claims(file)
    for text, sentence in (("a: [", "not valid YAML"), ("- 1", "holds list; expected the keys")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            read_claims(file)
    with pytest.raises(ConfigError, match=r"claims file nothing; .*\baopd\b"):
        read_claims("nothing")


def test_the_shipped_claims_are_read_and_use_known_metrics():
    file = read_claims("aopd")
    assert [file.profile_of(claim) for claim in file.claims[:3]] == ["paper", "paper", "paper"]
    assert file.primary == ("learns", "ends", "retains")
    assert {metric.name for claim in file.claims for metric in claim.parsed.metrics} <= set(claim_metrics())
