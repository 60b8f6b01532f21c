"""An entry's kind follows from the adapter that it names, not from its name in the suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.rundir.files import write_json
from reports.compare.comparison import Comparison
from reports.compare.headline import headline
from reports.data.frames import load_frames
from reports.data.matched_pairs import matched_table
from reports.data.methods import ENTROPY, TRAINING, find_methods
from reports.figures import style
from tests.support.reports.run_factory import write_run


@pytest.mark.parametrize(
    ("kind", "options"),
    [("replay", {"of": {"adapter": "sft", "options": {}}}), ("gkd", {"lmbda": 0.0}), ("replay", {"of": "sft"})],
)
@pytest.mark.parametrize("schema", [2, 3])
def test_entropy_is_compared_only_where_both_train_on_the_students_answers(
    tmp_path: Path, kind: str, options: dict[str, object], schema: int
):
    paths = [write_run(tmp_path, "opd"), write_run(tmp_path, "mine", kind=kind)]
    file = paths[1] / "manifest.json"
    found = json.loads(file.read_text()) | {"adapter_config": options, "trains_on": ["data"], "schema": schema}
    if schema == 2:
        del found["trains_on"], found["kind"]
        found["config"] = {"adapter": {"adapter": kind, "options": options}}
    file.write_text(json.dumps(found))
    compared = Comparison(find_methods(paths))
    assert compared.row("mine", ENTROPY) is None
    assert any(re.match("mine trains on references, .*entropy", note) for note in compared.notes())


def test_entropy_over_answers_that_are_partly_references_is_not_the_students(tmp_path: Path):
    paths = [write_run(tmp_path, "opd"), write_run(tmp_path, "gkd")]
    found = json.loads((paths[1] / "manifest.json").read_text())
    write_json(paths[1] / "manifest.json", found | {"trains_on": ["student", "data"]})
    opd, gkd = find_methods(paths)
    truncated = TRAINING["truncated_share"]
    assert [bool(method.estimate(truncated).by_seed) for method in (opd, gkd)] == [True, False]
    compared = Comparison([opd, gkd])
    assert compared.row("gkd", ENTROPY) is None
    assert any(re.match("gkd trains on references, .*entropy", note) for note in compared.notes())


def test_a_control_is_known_by_its_adapter_not_by_its_entrys_name(tmp_path: Path):
    for entry, kind in (("a_frozen", "none"), ("opd", "opd"), ("aopd", "aopd")):
        write_run(tmp_path, entry, kind=kind)
    methods = find_methods([tmp_path])
    assert [method.name for method in methods] == ["a_frozen", "opd", "aopd"]
    assert [method.control for method in methods] == [True, False, False]
    assert not [note for note in Comparison(methods).notes() if "a_frozen trains on" in note]


NAMES = ["v", "w", "x", "y", "z"]
TAKEN = ["aopd", "none", "gkd", "sft", "opd"]
KINDS = ["replay", "sft", "aopd", "opd", "gkd"]


@pytest.mark.parametrize("names", [NAMES, TAKEN])
def test_order_reference_and_colours_follow_the_kinds_whatever_the_entries_are_called(tmp_path: Path, names: list[str]):
    for entry, kind in zip(names, KINDS, strict=True):
        for seed in (0, 1):
            write_run(tmp_path, entry, seed, kind=kind)
    frames = load_frames([tmp_path])
    entry_of = dict(zip(KINDS, names, strict=True))
    shown = list(dict.fromkeys(run.adapter for run in frames.runs))
    assert shown[:3] == [entry_of["sft"], entry_of["opd"], entry_of["aopd"]]
    assert set(matched_table(frames)["against"]) == {entry_of["opd"]}
    assert all(f"than {entry_of['sft']}" in sentence for sentence in headline(frames))
    with style.shared(frames.labelled):
        colours = style.colours(names)
        assert style.reference(shown) == entry_of["opd"]
    assert {kind: colours[entry_of[kind]] for kind in KINDS[1:]} == {kind: style.KNOWN[kind] for kind in KINDS[1:]}
