"""Planned looks: which plan counts, what a page says about it, and that added seeds give no new test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.config.base import FIRST_LOOK
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.config.study_file import Study
from harness.errors import ConfigError
from harness.rundir.files import write_json
from harness.rundir.reader import find_runs
from harness.rundir.registered_claims import registrations_for
from harness.rundir.store import read_manifest
from harness.stats.claim_verdicts import NO_VERDICT, NOT_TESTED, SUPPORTED
from harness.stats.looks import FEWEST_SEEDS
from reports.claims.claim_file import ClaimFile
from reports.claims.evidence import Evidence
from reports.claims.judge_claims import Verdict, judge_claims
from reports.claims.planned_looks import describe_looks, find_looks
from reports.claims.registration import describe_plan
from reports.data.methods import find_methods
from reports.study.study_results import collect
from reports.study.study_verdicts import judge_study
from tests.reports.claims.test_registration import FILE, call
from tests.support.models import write_yaml
from tests.support.reports.run_factory import write_finished
from tests.support.reports.study_factory import constant, fill, study

CLAIMS = ClaimFile.model_validate(FILE)


def write_seeds(out: Path, seeds: range, *overrides: str, created: str = "") -> None:
    """Write finished runs of both methods, in which AOPD learns about 30 points more."""
    for seed in seeds:
        for entry in ("opd", "aopd"):
            spec = RunSpec(load_suite("tiny", overrides), entry, seed, out=out)
            write_finished(spec, constant(spec, 0.8 + 0.005 * (seed % 3) if entry == "aopd" else 0.5, 0.3))
            manifest = read_manifest(spec.path)
            assert manifest is not None
            facts: dict[str, Any] = {"registered": registrations_for(out, "tiny")}
            if created:
                facts["sessions"] = (manifest.made.model_copy(update={"created": created}),)
            write_json(spec.path / "manifest.json", manifest.model_copy(update=facts).as_json())


def row_of(out: Path) -> Verdict:
    return judge_claims([CLAIMS], Evidence(find_methods([out / "tiny"])))[0]


def test_a_claim_is_judged_at_the_looks_that_the_suite_plans(tmp_path: Path):
    plan = ["seeds=[0, 1, 2, 3, 4]", "looks=[3, 5]"]
    write_seeds(tmp_path, range(3), *plan)
    assert row_of(tmp_path).verdict == SUPPORTED
    assert row_of(tmp_path).level == pytest.approx(0.00762, abs=1e-5)
    write_seeds(tmp_path, range(3, 4), *plan)
    assert (row_of(tmp_path).verdict, row_of(tmp_path).reason) == (NO_VERDICT, "no look at 4 seeds; the next is at 5")
    write_seeds(tmp_path, range(4, 5), *plan)
    assert row_of(tmp_path).verdict == SUPPORTED
    assert "3 seeds (0.76 %), 5 seeds (4.8 %)" in describe_looks(CLAIMS, find_runs([tmp_path]))


def test_a_claim_that_still_waits_for_seeds_closes_the_sequence(tmp_path: Path):
    """Replay has two of three planned seeds; the third one may show that the first claim's effect is not there."""
    (learns,) = FILE["claims"]
    first = {**learns, "name": "replay", "expression": learns["expression"].replace("aopd", "aopd_replay")}
    file = ClaimFile.model_validate({**FILE, "primary": ["replay", "learns"], "claims": [first, learns]})
    write_seeds(tmp_path, range(3))
    found = []
    for seed in range(3):
        spec = RunSpec(load_suite("tiny", []), "aopd_replay", seed, out=tmp_path)
        write_finished(spec, constant(spec, 0.8 + 0.005 * (seed % 3), 0.3))
        found.append([row.verdict for row in judge_claims([file], Evidence(find_methods([tmp_path / "tiny"])))])
    assert found == [[NO_VERDICT, NOT_TESTED], [NO_VERDICT, NOT_TESTED], [SUPPORTED, SUPPORTED]]


def test_seeds_added_after_the_last_look_give_no_new_test(tmp_path: Path):
    write_seeds(tmp_path, range(3))
    assert (row_of(tmp_path).verdict, row_of(tmp_path).level) == (SUPPORTED, 0.05)
    assert "exploratory" not in describe_looks(CLAIMS, find_runs([tmp_path]))
    write_seeds(tmp_path, range(3, 5), "seeds=[0, 1, 2, 3, 4]", created="2026-02-01T00:00:00+00:00")
    assert row_of(tmp_path).verdict == NO_VERDICT
    assert row_of(tmp_path).effect.seeds == 5
    assert "look at 3 are exploratory" in describe_looks(CLAIMS, find_runs([tmp_path]))


def test_a_plan_too_small_for_a_verdict_can_be_replaced(tmp_path: Path):
    write_seeds(tmp_path, range(1), "seeds=[0]")
    assert "1 seed planned, and a verdict needs 3" in describe_looks(CLAIMS, find_runs([tmp_path]))
    write_seeds(tmp_path, range(1, 3), created="2026-02-01T00:00:00+00:00")
    assert row_of(tmp_path).verdict == SUPPORTED


def test_runs_without_a_plan_are_judged_by_the_study_s_file_else_at_5_percent(tmp_path: Path):
    write_seeds(tmp_path, range(3))
    for run in find_runs([tmp_path]):
        write_json(run.path / "manifest.json", run.manifest.model_copy(update={"looks": ()}).as_json())
    runs = find_runs([tmp_path])
    assert (find_looks(CLAIMS, runs), find_looks(CLAIMS, runs, (3, 5))) == ((), (3, 5))
    assert (row_of(tmp_path).verdict, row_of(tmp_path).level) == (SUPPORTED, 0.05)
    assert "record no planned looks" in describe_looks(CLAIMS, runs)


def test_a_study_that_grows_is_exploratory_beyond_its_plan(tmp_path: Path):
    factors = {"method": {"title": "Method", "entries": ["opd", "aopd"]}}
    learned = {"opd": 0.5, "aopd": 0.8}

    def judged(seeds: int, **keys: Any) -> Verdict:
        plan = study(tmp_path / f"{seeds}", factors, seeds=range(seeds), **keys)
        fill(plan, lambda s: constant(s, learned[s.entry] + 0.005 * (s.seed % 3) * (s.entry == "aopd"), 0.3))
        return judge_study(collect(plan))[0]

    assert (judged(5).verdict, judged(4, looks=[3, 6]).verdict) == (SUPPORTED, NO_VERDICT)
    grown = study(tmp_path / "5", factors, seeds=range(7))
    for spec in (each for each in grown.specs if each.seed > 4):
        write_finished(spec, constant(spec, learned[spec.entry], 0.3))
    row = judge_study(collect(grown))[0]
    assert row.verdict == NO_VERDICT
    assert re.search(r"last was at 5, .*\b2 seeds added", row.reason)


@pytest.mark.parametrize("looks", [[2, 5], [5, 3], [3, 3], [], [3]])
def test_looks_that_cannot_be_kept_are_refused(looks: list[int], tmp_path: Path):
    with pytest.raises(ConfigError, match="looks"):
        load_suite("tiny", ["seeds=[0, 1, 2, 3]", f"looks={looks}"])
    keys: dict[str, Any] = {"name": "a", "title": "A", "suite": "tiny", "entries": ["opd"], "minutes_per_run": 1}
    keys["factors"] = {"method": {"title": "Method"}}
    with pytest.raises(ValueError, match="looks"):
        Study.model_validate({**keys, "seeds": [0, 1, 2, 3], "looks": looks})


def test_a_look_needs_as_many_seeds_as_a_verdict():
    assert FIRST_LOOK == FEWEST_SEEDS


def test_looks_change_no_run():
    plain, planned = load_suite("tiny"), load_suite("tiny", ["looks=[3, 5]"])
    assert RunSpec(plain, "opd", 0).config_hash == RunSpec(planned, "opd", 0).config_hash


def test_a_registration_holds_seeds_and_looks_and_versions_are_counted(tmp_path: Path, monkeypatch: Any, capsys: Any):
    claims = write_yaml(tmp_path / "claims.yaml", FILE)

    def register(*settings: str) -> None:
        chosen = [word for setting in settings for word in ("--set", setting)]
        assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", tmp_path, *chosen) == 0

    register("seeds=[0, 1, 2, 3, 4]", "looks=[3, 5]")
    assert "seeds 0, 1, 2, 3, 4. Claims are judged at 3 seeds (0.76 %)" in " ".join(capsys.readouterr().out.split())
    (written,) = registrations_for(tmp_path, "tiny")
    assert (written.seeds, written.looks) == ((0, 1, 2, 3, 4), (3, 5))
    write_seeds(tmp_path, range(3))
    assert find_looks(CLAIMS, find_runs([tmp_path])) != (3, 5)  # these runs were made before the registration
    assert "versions" not in describe_plan(CLAIMS, find_runs([tmp_path]))
    register()
    write_seeds(tmp_path, range(3, 4))
    assert "2 versions of them were registered" in describe_plan(CLAIMS, find_runs([tmp_path]))


def test_a_registered_plan_is_the_first_one_and_other_seeds_are_named(tmp_path: Path, monkeypatch: Any):
    claims = write_yaml(tmp_path / "claims.yaml", FILE)
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", tmp_path) == 0
    write_seeds(tmp_path, range(5), "seeds=[0, 1, 2, 3, 4]", created="2099-01-01T00:00:00+00:00")
    runs = find_runs([tmp_path])
    assert find_looks(CLAIMS, runs) == (3,)
    said = describe_plan(CLAIMS, runs)
    assert "does not have seed 3, 4" in said
    assert "look at 3 are exploratory" in said
    assert row_of(tmp_path).verdict == NO_VERDICT
