"""Registered claims: what the command writes, what runs carry, and a report's sentence on when claims were written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.app import main
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.rundir.files import write_json
from harness.rundir.reader import find_runs
from harness.rundir.registered_claims import configuration_digest, configurations_of, covers, registrations_for
from harness.rundir.schema import Manifest, RegisteredClaims
from harness.rundir.store import read_manifest
from reports.claims.claim_file import read_claims
from reports.claims.registration import describe_registration
from tests.support.models import micro_suite, write_yaml
from tests.support.reports.records import manifest_of
from tests.support.reports.run_factory import write_finished
from tests.support.reports.study_factory import constant

CLAIM: dict[str, Any] = {
    "name": "learns",
    "text": "AOPD learns more",
    "expression": "metric(aopd, learning_accuracy) > metric(opd, learning_accuracy)",
    "unit": "points",
    "smallest_effect": 0,
}
FILE: dict[str, Any] = {"title": "A trial", "source": "nowhere", "primary": ["learns"], "claims": [CLAIM]}


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    return write_yaml(tmp_path / "claims.yaml", FILE)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def start(out: Path, entry: str, seed: int, *overrides: str) -> Path:
    """Write a finished run that carries what is registered when it starts, as the pipeline does."""
    spec = RunSpec(load_suite("tiny", overrides), entry, seed, out=out)
    write_finished(spec, constant(spec, 0.6, 0.3))
    manifest = read_manifest(spec.path)
    assert manifest is not None
    registered = registrations_for(out, spec.suite.name)
    write_json(spec.path / "manifest.json", manifest.model_copy(update={"registered": registered}).as_json())
    return spec.path


def test_a_registration_whose_digest_had_the_last_part_of_a_hub_id_still_covers_its_runs():
    def of(student: str) -> Manifest:
        return manifest_of(config={"student": {"kind": "pretrained", "path": student}})

    configurations = {"opd, default": configuration_digest(of("Qwen3-8B").config)}
    registered = RegisteredClaims(title="", claims="", suite="s", configurations=configurations, when="")
    assert covers(registered, of("Qwen/Qwen3-8B").model_copy(update={"adapter": "opd", "order": "default"}))


def sentence_of(claims: Path, out: Path) -> str:
    return describe_registration(read_claims(claims), find_runs([out]))


def test_claims_registered_before_the_first_run(tmp_path: Path, claims: Path, monkeypatch: Any, capsys: Any):
    out = tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    assert read_claims(claims).digest in capsys.readouterr().out
    for entry in ("opd", "aopd"):
        start(out, entry, 0)
    assert sentence_of(claims, out).startswith("Registered before the first run")
    assert sentence_of(claims, out).endswith("UTC.")


def test_a_comment_changes_nothing_and_a_margin_does(tmp_path: Path, claims: Path, monkeypatch: Any):
    out = tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    start(out, "aopd", 0)
    claims.write_text(f"# why\n{claims.read_text()}", encoding="utf-8")
    assert sentence_of(claims, out).startswith("Registered before the first run")
    write_yaml(claims, FILE | {"claims": [CLAIM | {"margin": 2}]})
    assert sentence_of(claims, out).startswith("Changed after")


def test_claims_registered_after_a_run_and_never(tmp_path: Path, claims: Path, monkeypatch: Any, capsys: Any):
    out = tmp_path / "runs"
    start(out, "opd", 0)
    assert sentence_of(claims, out).startswith("Not registered before the runs")
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    assert "1 of these runs started before" in capsys.readouterr().out
    start(out, "aopd", 0)
    assert sentence_of(claims, out).endswith("after 1 run of 2 had started.")


def test_a_run_of_another_configuration_is_named(tmp_path: Path, claims: Path, monkeypatch: Any):
    out = tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    start(out, "opd", 0)
    start(out, "aopd", 3, "training.optimizer.lr=1e-3")
    assert re.search(r"configuration of 1 run of 2 \(aopd\) is not the registered", sentence_of(claims, out))


def test_a_machine_with_another_autocast_runs_what_was_registered(tmp_path: Path, claims: Path, monkeypatch: Any):
    out = tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    start(out, "opd", 0, "training.autocast=bfloat16", "student.warmup.autocast=bfloat16")
    start(out, "aopd", 0, "training.autocast=null", "student.warmup.autocast=null")
    assert sentence_of(claims, out).endswith("UTC.")


def test_a_studys_suites_are_all_registered(tmp_path: Path, claims: Path, monkeypatch: Any):
    out = tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--study", "verdicts", "--out", out) == 0
    names = [json.loads(line)["suite"] for line in (out / "claims.jsonl").read_text().splitlines()]
    assert names == ["tiny-method", "tiny-start-strong", "tiny-branch-weak", "tiny-branch-strong"]


def test_one_of_suite_and_study_is_asked_for(claims: Path, monkeypatch: Any, capsys: Any):
    for options in ([], ["--suite", "tiny", "--study", "tiny"]):
        assert call(monkeypatch, "claims", "register", claims, *options) == 2
        assert "one of --suite and --study" in capsys.readouterr().err


def test_the_sequence_is_printed(claims: Path, monkeypatch: Any, capsys: Any):
    assert call(monkeypatch, "claims", "check", "aopd") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("1. learns: ")


def test_a_manifest_without_the_field_is_read(tmp_path: Path):
    run = start(tmp_path, "opd", 0)
    raw = json.loads((run / "manifest.json").read_text())
    raw.pop("registered")
    (run / "manifest.json").write_text(json.dumps(raw))
    assert isinstance(manifest := read_manifest(run), Manifest)
    assert manifest.registered == ()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_real_run_carries_what_was_registered(tmp_path: Path, claims: Path, monkeypatch: Any):
    suite, out = write_yaml(tmp_path / "micro.yaml", micro_suite()), tmp_path / "runs"
    assert call(monkeypatch, "claims", "register", claims, "--suite", suite, "--out", out) == 0
    assert call(monkeypatch, "run", suite, "--adapter", "opd", "--seed", "0", "--out", out) == 0
    assert sentence_of(claims, out).startswith("Registered before the first run")
    assert "not the registered one" not in sentence_of(claims, out)


def test_stages_that_have_no_joint_order_are_registered_in_their_own():
    plain, fixed = (
        load_suite("tiny", overrides)
        for overrides in ([], ["stages=[{task: tiny_arithmetic, adapter: opd}, tiny_weather]", "orders={}"])
    )
    assert {"opd, default", "opd, tools_first", "opd, joint"} <= set(configurations_of(plain))
    assert set(configurations_of(fixed)) == {f"{entry}, default" for entry in fixed.adapters}


def test_another_files_registration_does_not_cover_a_configuration(tmp_path: Path, claims: Path, monkeypatch: Any):
    out, other = tmp_path / "runs", write_yaml(tmp_path / "other.yaml", FILE | {"title": "Another"})
    slower = "training.optimizer.lr=1e-3"
    assert call(monkeypatch, "claims", "register", claims, "--suite", "tiny", "--out", out) == 0
    assert call(monkeypatch, "claims", "register", other, "--suite", "tiny", "--set", slower, "--out", out) == 0
    for entry in ("opd", "aopd"):
        start(out, entry, 0, slower)
    assert "2 runs of 2 (opd, aopd)" in sentence_of(claims, out)
    assert "2 runs of 2" not in sentence_of(other, out)
