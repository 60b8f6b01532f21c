"""Claims as data: what the grammar takes and refuses, how a file's mistakes are reported, and verdicts by hand."""

from __future__ import annotations

import io
import math
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from harness.errors import ConfigError
from harness.stats.estimates import Estimate
from harness.stats.intervals import Interval, t_interval
from harness.stats.power import detectable
from harness.stats.verdicts import CONTRADICTED, NO_RUNS, NOT_RESOLVED, SUPPORTED, judge, p_of, seeds_to_resolve
from reports.claims.claim_file import claim_metrics, metric_units, metrics_of_tasks, read_claims
from reports.claims.grammar import Metric, parse
from reports.claims.judge_claims import NOT_SHOWN_TO_MATCH, UNMATCHED, verdicts
from reports.claims.render_verdicts import explain_verdict, reported, verdicts_grid, write_verdicts
from reports.data.methods import find_methods
from reports.terminal.report_commands import judge_by_setting
from tests.support.run_factory import write_run

START = [0.5, 0.1, 0.6]
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
def test_whatever_is_no_part_of_the_grammar_is_refused(text: str):
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


CLAIM: dict[str, Any] = {
    "name": "learns",
    "text": "AOPD learns {task}",
    "expression": "metric(aopd, learned) > metric(opd, learned)",
    "unit": "points",
    "smallest_effect": 5,
    "scope": {"tasks": ["first"]},
}


def write_claims(folder: Path, *changes: dict[str, Any]) -> Path:
    """Write a file of one claim per change of CLAIM."""
    content = {"title": "A trial", "source": "nowhere", "claims": [CLAIM | change for change in changes]}
    (folder / "claims.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "claims.yaml"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"expression": "__import__('os') > 0"},
            r"claims.yaml: claim learns: claims.0.expression: found .* is not allowed",
        ),
        (
            {"expression": "metric(aopd, learnt) > 0"},
            r"claim learns: claims.0: there is no metric 'learnt'; there are final",
        ),
        (
            {"expression": "metric(aopd, intransigence) < 0"},
            r"claim learns: claims.0: there is no metric 'intransigence'; there are final",
        ),
        ({"scope": {}}, "metric 'learned' is of one task; give scope.tasks"),
        ({"unit": "percent"}, r"claim learns: claims.0.unit: found 'percent'"),
        ({"smallest_effect": -1}, r"claim learns: claims.0.smallest_effect: found -1"),
        (
            {"matched": "learned", "expression": "metric(aopd, learned) > 0"},
            "matched needs an expression over two adapters",
        ),
        ({"scope": {"start": "pairs", "tasks": ["first"]}}, "go together with scope.start: pairs"),
        ({"scop": {}}, "claim learns: claims.0.scop: unknown key"),
        (
            {"expression": "metric(aopd, entropy) > metric(opd, entropy)"},
            "the expression is in nats and unit is points; give the unit nats",
        ),
        (
            {"expression": "metric(aopd, entropy) > metric(opd, learned)"},
            "it adds or compares nats and points; give both sides the same unit",
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
    with pytest.raises(ConfigError, match="there is no claims file nothing; expected a YAML file, or one of aopd"):
        read_claims("nothing")


def test_the_shipped_claims_are_read_and_use_known_metrics():
    file = read_claims("aopd")
    assert len(file.claims) == 7
    assert {metric.name for claim in file.claims for metric in claim.parsed.metrics} <= set(claim_metrics())


@pytest.mark.parametrize(
    ("interval", "smallest", "verdict"),
    [
        (Interval(0.1, 0.06, 0.14, 3), 0.05, SUPPORTED),
        (Interval(0.1, 0.04, 0.16, 3), 0.05, NOT_RESOLVED),
        (Interval(0.02, 0.01, 0.03, 3), 0.05, CONTRADICTED),
        (Interval(-0.1, -0.14, -0.06, 3), 0.05, CONTRADICTED),
        (Interval(0.1, 0.06, 0.14, 2), 0.05, NOT_RESOLVED),
        (Interval(math.nan, math.nan, math.nan, 0), 0.05, NO_RUNS),
    ],
)
def test_an_interval_beyond_the_smallest_effect_supports_and_one_short_of_it_contradicts(
    interval: Interval, smallest: float, verdict: str
):
    mirrored = Interval(-interval.mean, -interval.high, -interval.low, interval.seeds)
    assert judge(interval, 0.01, 1, smallest) == verdict
    assert judge(mirrored, 0.01, -1, smallest) == verdict


def test_holm_s_p_value_is_asked_too():
    assert judge(Interval(0.1, 0.06, 0.14, 3), 0.06, 1, 0.05) == NOT_RESOLVED
    assert judge(Interval(0.1, 0.06, 0.14, 3), math.nan, 1, 0.05) == NOT_RESOLVED


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=3, max_size=6, unique=True), st.floats(0, 0.5))
def test_interval_and_p_value_say_the_same(values: list[float], smallest: float):
    """Of a single test, p against the smallest effect is below 5 % just where the interval leaves it out."""
    interval = t_interval(values)
    p = p_of(interval, 1, smallest)
    outside = interval.low > smallest or interval.high < smallest
    assert (p < 0.05) == outside or min(abs(interval.low - smallest), abs(interval.high - smallest)) < 1e-9


def test_the_seeds_to_resolve_are_those_that_detect_the_distance():
    values = [0.1, 0.2, 0.0, 0.14]
    n = seeds_to_resolve(t_interval(values), 1, 0.05)
    spread, distance = float(pd.Series(values).std()), 0.11 - 0.05
    assert n is not None
    assert detectable(spread, n) <= distance < detectable(spread, n - 1)
    more = seeds_to_resolve(t_interval(values), 1, 0.05, tests=5)
    assert more is not None
    assert more > n
    assert seeds_to_resolve(t_interval([0.1])) is None
    assert seeds_to_resolve(t_interval([0.1, -0.1, 0.001])) is None


def write(tmp_path: Path, adapter: str, learned: list[float], kept: list[float], **options: Any) -> None:
    for seed, (one, other) in enumerate(zip(learned, kept, strict=True)):
        write_run(tmp_path, adapter, seed, [START, [one, 0.2, 0.5], [other, 0.7, 0.5]], items=100, **options)


def judged(tmp_path: Path, *changes: dict[str, Any], margin: float = 0.05) -> list[tuple[str, str]]:
    found = verdicts(read_claims(write_claims(tmp_path, *changes)).claims, find_methods([tmp_path]), margin)
    return [(each.place.task or each.place.start, each.verdict) for each in found]


def test_verdicts_on_runs(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.8, 0.81, 0.79], [0.3, 0.31, 0.3])
    large = {"name": "large", "smallest_effect": 40}
    every = {"name": "every", "scope": {"tasks": ["each"]}}
    none = {"name": "none", "expression": "metric(gkd, learned) > 0"}
    kept = {"name": "kept", "expression": "metric(aopd, retained) > metric(opd, retained)", "matched": "learned"}
    assert judged(tmp_path, {}, large, every, none, kept) == [
        ("tiny_arithmetic", SUPPORTED),
        ("tiny_arithmetic", CONTRADICTED),
        ("tiny_arithmetic", SUPPORTED),
        ("tiny_weather", NOT_RESOLVED),
        ("tiny_arithmetic", NO_RUNS),
        ("tiny_arithmetic", UNMATCHED),
    ]


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [
        ({"start": "strang"}, "claim learns: start names 'strang', which no run has; the runs have weak"),
        (
            {"tasks": ["tiny_wether"]},
            r"claim learns: scope.tasks names 'tiny_wether', .*; the runs have tiny_arithmetic, ",
        ),
        ({"stage": 99}, "claim learns: scope.stage is 99, and the runs have the stages 1 to 2; name one of them"),
    ],
)
def test_a_scope_that_no_run_has_is_refused_with_what_they_have(tmp_path: Path, scope: dict[str, Any], sentence: str):
    write(tmp_path, "opd", [0.5], [0.3])
    write(tmp_path, "aopd", [0.5], [0.3])
    with pytest.raises(ConfigError, match=sentence):
        judged(tmp_path, {"scope": {"tasks": ["first"], **scope}})
    with pytest.raises(ConfigError, match="start names 'strang'"):
        judged(tmp_path, {"expression": "metric(aopd, learned, start=strang) > 0"})
    assert judged(tmp_path, {"scope": {"tasks": ["tiny_long_sums"]}, "expression": "metric(aopd, final) > 0"})


def test_what_is_kept_is_judged_at_matched_learning(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3, 0.3, 0.3])
    write(tmp_path, "aopd", [0.5, 0.51, 0.5], [0.45, 0.46, 0.47])
    kept = {"expression": "metric(aopd, retained) > metric(opd, retained)", "matched": "learned"}
    assert judged(tmp_path, kept) == [("tiny_arithmetic", SUPPORTED)]
    assert judged(tmp_path, kept, margin=0.015) == [("tiny_arithmetic", NOT_SHOWN_TO_MATCH)]


def test_starts_are_judged_apart_and_beside_each_other(tmp_path: Path):
    for start, gain in (("weak", 0.3), ("strong", 0.1)):
        write(tmp_path / start, "opd", [0.5, 0.5, 0.5], [0.3] * 3, start=start)
        write(tmp_path / start, "aopd", [0.5 + gain, 0.51 + gain, 0.49 + gain], [0.3] * 3, start=start)
    expression = "metric(aopd, learned, start=one) - metric(aopd, learned, start=other) > 0"
    reports = {"weak": 8.0, "strong": 4.5}
    pairs = {
        "name": "pairs",
        "expression": expression,
        "scope": {"start": "pairs", "tasks": ["first"]},
        "reported": reports,
    }
    file = write_claims(tmp_path, {"reported": reports, "reported_in": "math"}, pairs)
    found = verdicts(read_claims(file).claims, find_methods([tmp_path / "weak", tmp_path / "strong"]))
    assert [(v.place.start, v.place.other) for v in found] == [("weak", ""), ("strong", ""), ("weak", "strong")]
    assert [reported(v.entry, v.place) for v in found] == ["+8.00 points, math", "+4.50 points, math", "+3.50 points"]
    assert found[2].effect.mean == pytest.approx(0.2)


def test_metrics_of_a_run_by_hand_and_up_to_a_stage(tmp_path: Path):
    write_run(tmp_path, "opd", 0, [START, [0.8, 0.2, 0.5], [0.3, 0.9, 0.4]])
    (method,) = find_methods([tmp_path], least=1)

    def value(name: str, task: str = "", stage: int | None = None) -> float:
        return method.estimate(claim_metrics()[name], task, stage).by_seed.get(0, math.nan)

    expected = {"before": 0.5, "learned": 0.8, "gained": 0.3, "final": 0.3, "retained": -0.5, "changed": -0.2}
    assert set(expected) | {"forgotten"} == set(metrics_of_tasks())
    for name, by_hand in expected.items():
        assert value(name, "tiny_arithmetic") == pytest.approx(by_hand)
    assert value("final", "tiny_arithmetic", stage=1) == pytest.approx(0.8)
    assert math.isnan(value("learned", "tiny_weather", stage=1))
    assert value("learning_accuracy") == pytest.approx(0.85)
    assert value("learning_accuracy", stage=1) == pytest.approx(0.8)
    assert value("forgetting_chaudhry") == pytest.approx(0.5)
    assert value("entropy") == pytest.approx(0.85)


def test_what_stood_in_the_way_is_said_and_how_many_seeds_would_do(tmp_path: Path):
    write(tmp_path, "opd", [0.5, 0.5, 0.5], [0.3] * 3)
    write(tmp_path, "aopd", [0.5, 0.7, 0.6], [0.3] * 3)
    methods = find_methods([tmp_path])
    found = verdicts(read_claims(write_claims(tmp_path, {})).claims, methods)
    assert explain_verdict(found[0]).startswith("not resolved (half-width 24.8 points)")
    row = verdicts_grid(found).rows[0]
    assert row[0] == "AOPD learns tiny_arithmetic, weak start"
    assert row[3] == "+5.0"
    assert int(row[-1]) > 3
    alike = verdicts(read_claims(write_claims(tmp_path, {"expression": "metric(opd, learned) > 0"})).claims, methods)
    assert verdicts_grid(alike).rows[0][-2:] == ["not resolved: all seeds have the same effect", "–"]
    written = write_verdicts(found, [read_claims(write_claims(tmp_path, {}))], tmp_path / "out")
    assert "A trial: nowhere" in written[0].read_text(encoding="utf-8")
    assert pd.read_csv(written[1]).loc[0, "verdict"] == NOT_RESOLVED


def test_a_report_s_claims_are_judged_for_each_suite_and_order_apart(tmp_path: Path):
    runs = tmp_path / "runs"
    for suite, adapter, seed in product(("tiny", "other"), ("opd", "aopd"), range(3)):
        write_run(runs, adapter, seed, suite=suite)
    files, text = [read_claims("aopd")], io.StringIO()
    judge_by_setting(Console(file=text, width=150), files, [runs], tmp_path / "several", "")
    judge_by_setting(Console(file=text, width=150), files, [runs / "tiny"], tmp_path / "one", "")
    assert ["other, default" in text.getvalue(), "tiny, default" in text.getvalue()] == [True, True]
    several, one = (
        sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob(f"{name}/**/*.csv")) for name in ("several", "one")
    )
    assert several == ["several/claims_other_default/claims.csv", "several/claims_tiny_default/claims.csv"]
    assert one == ["one/claims.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / several[1]), pd.read_csv(tmp_path / one[0]))
