"""A stage that all methods share is trained on one of the machines that have a store in common, and fetched by the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError
from harness.pipeline.run import run
from harness.rundir.process.progress import Event
from tests.support.runs import changed_suite, manifest

WARM: dict[str, Any] = {"task": "tiny_weather", "adapter": "sft", "training": {"steps": 3}}
TRAINS = "stage 1 tiny_weather"


def suite_with_store(tmp_path: Path) -> Suite:
    """Return the micro suite with a first stage that SFT trains for all methods, and a store."""
    changes: dict[str, Any] = {"stages": [WARM, "tiny_currency"], "storage": f"file://{tmp_path}/bucket"}
    return changed_suite(tmp_path, lambda raw: raw.update(changes, snapshot_minutes=0))


def test_another_machine_fetches_the_stage_and_trains_from_the_same_weights(tmp_path: Path):
    suite, there = suite_with_store(tmp_path), list[Event]()
    first = run(RunSpec(suite, "opd", 0, out=tmp_path / "here"))
    second = run(RunSpec(suite, "sft", 0, out=tmp_path / "there"), there.append)
    assert TRAINS not in {event.activity for event in there}
    assert manifest(second)["weights"]["stage_1"] == manifest(first)["weights"]["stage_1"]
    assert (second / "stage_1_tiny_weather/train/steps.jsonl").is_file()


@pytest.mark.slow
def test_another_machine_continues_the_stage_of_a_lost_one(tmp_path: Path):
    suite, there = suite_with_store(tmp_path), list[Event]()

    def lose(event: Event) -> None:
        if (event.activity, event.done) == (TRAINS, 2):
            raise RunError("the machine is gone")

    with pytest.raises(RunError, match="gone"):
        run(RunSpec(suite, "opd", 0, out=tmp_path / "here"), lose)
    other = run(RunSpec(suite, "none", 0, out=tmp_path / "there"), there.append)
    assert [event.done for event in there if event.activity == TRAINS][1] > 1
    undisturbed = suite.model_copy(update={"storage": None})
    whole = run(RunSpec(undisturbed, "none", 0, out=tmp_path / "whole"))
    assert manifest(other)["weights"] == manifest(whole)["weights"]
    # The lost machine's run takes the stage too.
    first = run(RunSpec(suite, "opd", 0, out=tmp_path / "here"))
    assert manifest(first)["weights"]["stage_1"] == manifest(whole)["weights"]["stage_1"]
    assert not list((tmp_path / "bucket").glob("*/opd/*/*/snapshots/*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["lease.Lease.refuse_lost", "stored_shared_stages.StoredSharedStages._put"])
def test_a_store_that_is_away_when_the_stage_is_trained_gets_it_from_the_same_command(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite, there = suite_with_store(tmp_path).model_copy(update={"snapshot_minutes": None}), list[Event]()
    mine = RunSpec(suite, "opd", 0, out=tmp_path / "here")

    def fail(*_: Any) -> None:
        raise RunError("no route to the store")

    def lose(event: Event) -> None:
        if event.activity == TRAINS and event.done == 3:
            patch.setattr(f"harness.rundir.shared.{place}", fail)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="no route"):
        run(mine, lose)
    first = run(mine)
    second = run(RunSpec(suite, "sft", 0, out=tmp_path / "there"), there.append)
    assert TRAINS not in {event.activity for event in there}
    assert manifest(second)["weights"]["stage_1"] == manifest(first)["weights"]["stage_1"]


@pytest.mark.slow
def test_a_stage_that_another_machine_stored_first_replaces_one_that_was_not_used_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = suite_with_store(tmp_path)
    mine = RunSpec(suite, "opd", 0, out=tmp_path / "here")

    def fail(*_: Any) -> None:
        raise RunError("no route to the store")

    with monkeypatch.context() as patch:
        patch.setattr("harness.rundir.shared.stored_shared_stages.StoredSharedStages._put", fail)
        with pytest.raises(RunError, match="no route"):
            run(mine)
    done = tmp_path / "there/micro/sft/default/seed0/stage_1_tiny_weather/train/done.json"
    run(RunSpec(suite, "sft", 0, out=tmp_path / "there"))
    first = run(mine)
    assert (first / "stage_1_tiny_weather/train/done.json").read_text() == done.read_text()
