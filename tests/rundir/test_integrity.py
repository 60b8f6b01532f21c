"""A finished run's files vouch for each other: every missing, short or changed file is named, by reports too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import RunError
from harness.lm.checkpoints import checkpoint_digests
from harness.pipeline.run import run
from harness.rundir.files import write_sealed
from harness.rundir.integrity import find_faults, move_away
from harness.rundir.reader import find_runs
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import is_finished
from reports.data.frames import load_frames
from tests.support.runs import FOLDERS, cells, flip_a_byte, vouch

CELL = "stage_1_tiny_weather/eval/tiny_weather"
TRAIN = "stage_1_tiny_weather/train"
READ_BY_REPORTS = (
    *("manifest.json", f"{CELL}/results.json", f"{CELL}/samples.parquet", f"{TRAIN}/steps.jsonl"),
    *(f"{TRAIN}/done.json", "stage_2_tiny_currency/drift/results.json", "stage_2_tiny_currency/drift/samples.parquet"),
)
OTHERS = (
    *(f"{TRAIN}/rollouts.parquet", f"{TRAIN}/checkpoint/model.safetensors", f"{TRAIN}/checkpoint/config.json"),
    f"{TRAIN}/checkpoint/tokenizer.json",
)


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def put_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (remove, empty, halve, flip_a_byte, put_a_folder)


def set_in(name: str, value: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))

    return change


def invert_scores(file: Path) -> None:
    samples = pd.read_parquet(file)
    samples.assign(score=1 - samples["score"]).to_parquet(file, index=False)


def drop_rows(file: Path) -> None:
    pd.read_parquet(file).iloc[::2].to_parquet(file, index=False)


def name_other_weights(file: Path) -> None:
    set_in("weights", "0" * 16)(file)
    vouch(file)


def name_another_task(file: Path) -> None:
    set_in("task", "tiny_currency")(file)
    vouch(file)


EDITS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "score": (f"{CELL}/results.json", set_in("score", 0.123)),
    "impossible score": (f"{CELL}/results.json", set_in("score", -1)),
    "items": (f"{CELL}/results.json", set_in("n", 2)),
    "inverted scores": (f"{CELL}/samples.parquet", invert_scores),
    "half of the rows": (f"{CELL}/samples.parquet", drop_rows),
    "a cell of other weights": (f"{CELL}/results.json", name_other_weights),
    "a cell of another task": (f"{CELL}/results.json", name_another_task),
    "another seed": ("manifest.json", set_in("seed", 7)),
    "another adapter": ("manifest.json", set_in("adapter", "opd")),
    "other weights": ("manifest.json", set_in("weights", {"start": "0" * 16})),
    "a manifest that is a list": ("manifest.json", lambda file: file.write_text("[]")),
    "a stage that is gone": (CELL, lambda folder: shutil.rmtree(folder.parents[1])),
    "a cell that is gone": (CELL, shutil.rmtree),
    "a checkpoint that is gone": (f"{TRAIN}/checkpoint", shutil.rmtree),
}


def kinds() -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    for file in (*READ_BY_REPORTS, *OTHERS):
        yield from ((f"{damage.__name__} {file}", file, damage) for damage in DAMAGES)
    yield from ((name, file, edit) for name, (file, edit) in EDITS.items())


def outcome(path: Path, names: Callable[[Path], Any]) -> str:
    try:
        return "named" if names(path) else "silent"
    except RunError:
        return "named"
    except Exception as error:
        return f"traceback {type(error).__name__}: {error}"


def test_every_kind_of_damage_of_a_finished_run_is_named(aopd: Path, tmp_path: Path):
    found: dict[str, str] = {}
    for number, (name, file, damage) in enumerate(kinds()):
        copy = tmp_path / f"{number}"
        shutil.copytree(aopd, copy)
        damage(copy / file)
        found[f"verify: {name}"] = outcome(
            copy, lambda path: list(find_faults(find_runs([path])[0], checkpoint_digests))
        )
        if file not in OTHERS and not file.endswith("checkpoint"):
            found[f"report: {name}"] = outcome(copy, lambda path: load_frames([path]).faults)
        shutil.rmtree(copy)
    silent = [name for name, result in found.items() if result == "silent"]
    tracebacks = [f"{name}: {result}" for name, result in found.items() if result.startswith("traceback")]
    print(f"damaged runs: tried {len(found)}, silent {len(silent)}, tracebacks {len(tracebacks)}")
    assert len(found) > 100
    assert silent == []
    assert tracebacks == []


def test_an_undisturbed_run_is_whole_and_so_is_one_that_still_goes_on(aopd: Path, tmp_path: Path):
    assert list(find_faults(find_runs([aopd])[0], checkpoint_digests)) == []
    copy = shutil.copytree(aopd, tmp_path / "run")
    set_in("finished", None)(copy / "manifest.json")
    vouch(copy / "manifest.json")
    shutil.rmtree(copy / FOLDERS[2])
    assert list(find_faults(find_runs([copy])[0], checkpoint_digests)) == []
    assert load_frames([copy]).faults == ()


def test_cells_swapped_between_two_methods_are_named(aopd: Path, opd: Path, tmp_path: Path):
    copy = shutil.copytree(aopd, tmp_path / "run")
    shutil.rmtree(copy / CELL)
    shutil.copytree(opd / CELL, copy / CELL)
    with pytest.raises(RunError, match="names the weights"):
        load_frames([copy])


def test_a_damaged_run_is_named_repaired_and_made_whole_by_its_own_command(aopd: Path, micro: Suite, tmp_path: Path):
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    shutil.copytree(aopd, spec.path)
    flip_a_byte(spec.path / CELL / "samples.parquet")
    halve(spec.path / "stage_2_tiny_currency/train/steps.jsonl")
    named = CliRunner().invoke(app, ["runs", "verify", str(spec.path)])
    assert named.exit_code == 1
    assert "samples.parquet" in named.output
    assert "steps.jsonl" in named.output
    assert CliRunner().invoke(app, ["runs", "verify", str(tmp_path), "--repair"]).exit_code == 1
    assert not is_finished(spec)
    run(spec)
    assert CliRunner().invoke(app, ["runs", "verify", str(spec.path)]).exit_code == 0
    assert cells(spec.path) == cells(aopd)


def set_done(folder: Path, **changes: Any) -> None:
    done = StageFolder(folder).training_done
    assert done is not None
    write_sealed(folder / "train/done.json", done.model_copy(update=changes))


def test_a_control_is_whole_where_the_weights_that_it_left_unchanged_are_gone(control: Path, tmp_path: Path):
    copy = Path(shutil.copytree(control, tmp_path / "run"))
    for stage in FOLDERS[1:]:
        set_done(copy / stage, unchanged=str(tmp_path / "gone"))
    assert list(find_faults(find_runs([copy])[0], checkpoint_digests)) == []
    set_done(copy / FOLDERS[2], before="", weights="other")  # the manifest knows better
    assert [fault.place for fault in find_faults(find_runs([copy])[0], checkpoint_digests)] == [
        copy / FOLDERS[2] / "train"
    ]


def test_a_cell_whose_checkpoint_was_removed_is_to_be_restored_and_stays_where_it_is(aopd: Path, tmp_path: Path):
    copy = Path(shutil.copytree(aopd, tmp_path / "run"))
    flip_a_byte(copy / CELL / "samples.parquet")
    remedies = [{fault.remedy for fault in find_faults(find_runs([copy])[0], checkpoint_digests)}]
    set_done(copy / FOLDERS[1], kept=False)
    shutil.rmtree(copy / TRAIN / "checkpoint")
    faults = list(find_faults(find_runs([copy])[0], checkpoint_digests))
    assert [*remedies, {fault.remedy for fault in faults}] == [{"evaluate"}, {"restore"}]
    assert move_away(copy, faults) == []


def test_a_run_does_not_continue_with_cells_of_other_weights(aopd: Path, opd: Path, micro: Suite, tmp_path: Path):
    spec = RunSpec(micro, "aopd", 0, out=tmp_path)
    shutil.copytree(aopd, spec.path)
    shutil.rmtree(spec.path / CELL)
    shutil.copytree(opd / CELL, spec.path / CELL)
    shutil.rmtree(spec.path / FOLDERS[2])
    with pytest.raises(RunError, match="was answered by the weights"):
        run(spec)
