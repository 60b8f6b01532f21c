"""The run directory: whole files or none, one process at a time, one configuration, nothing left of what was interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.base import digest
from harness.config.load import load_suite
from harness.config.run_spec import RunSpec, identity_of, session_settings
from harness.errors import RunError
from harness.rundir.files import read_cell, read_json, stderr_to, write_cell, write_json
from harness.rundir.reader import read_parquet
from harness.rundir.records.training_records import DoneFile
from harness.rundir.schema import SCHEMA, Manifest, Session
from harness.rundir.stage_folder import StageFolder
from harness.rundir.store import RunStore
from tests.support.models import micro_suite, write_yaml
from tests.support.reports.records import cell_of, manifest_of

SIZE = 20_000


def killed_while(work: Callable[[], object], begun: Callable[[], object]) -> None:
    """Run `work` in a separate process, again and again, and kill it at a random moment after `begun()` is true."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    try:
        while not begun():
            time.sleep(0.001)
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert ended is None, "the writer ended by itself"
        time.sleep(random.Random(child).uniform(0.001, 0.03))
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def test_a_json_file_is_the_old_or_the_new_one_whenever_the_writer_is_killed(tmp_path: Path):
    path, count = tmp_path / "value.json", [0]

    def write() -> None:
        count[0] += 1
        write_json(path, {"round": count[0], "values": [count[0]] * SIZE})

    def rounds() -> int:
        return (read_json(path) or {"round": 0})["round"]

    for _ in range(15):
        killed_while(write, lambda: rounds() > 2)
        found = read_json(path)
        assert found is not None
        assert found["values"] == [found["round"]] * SIZE


def test_readers_never_see_a_json_file_half_written(tmp_path: Path):
    path = tmp_path / "value.json"
    script = f"""
from pathlib import Path
from harness.rundir.files import write_json
for i in range(10**6):
    write_json(Path({str(path)!r}), {{"round": i, "values": [i] * {SIZE}}})
"""
    writer = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not path.exists():
            time.sleep(0.01)
        rounds: list[int] = []
        while len(rounds) < 200 or len(set(rounds)) < 3:
            rounds.append(json.loads(path.read_text())["round"])
    finally:
        writer.kill()
        writer.wait()
    assert rounds == sorted(rounds)


def test_a_cell_is_there_whole_or_not_at_all_whenever_the_writer_is_killed(tmp_path: Path):
    samples = pd.DataFrame({"item_id": [str(i) for i in range(2000)], "score": [1.0] * 2000})

    def writer(folder: Path) -> Callable[[], None]:
        numbers = iter(range(10**6))

        def write() -> None:
            number = next(numbers)
            write_cell(folder / f"task{number}", cell_of(0, n=number + 1), samples)

        return write

    for i in range(8):
        folder = tmp_path / str(i)
        killed_while(writer(folder), (folder / "task3").exists)
        cells = list(folder.glob("task*"))
        assert len(cells) > 3
        for cell in cells:
            found = read_cell(cell)
            assert found is not None
            assert found[0].n == int(cell.name.removeprefix("task")) + 1
            pd.testing.assert_frame_equal(found[1], samples)


def test_what_a_killed_writer_left_is_not_an_evaluated_task(tmp_path: Path):
    folder = StageFolder(tmp_path / "stage_0")
    left = folder.cell("tiny").with_name(".tiny.abc")
    left.mkdir(parents=True)
    (left / "results.json").write_text("{}")
    assert not folder.evaluated("tiny")
    write_cell(folder.cell("tiny"), cell_of(1), pd.DataFrame({"score": [1.0]}))
    assert folder.evaluated("tiny")


def test_an_error_while_a_cell_is_written_leaves_nothing(tmp_path: Path):
    with pytest.raises(TypeError):
        write_cell(tmp_path / "task", cell_of(1, keys={"fields": {"a": object()}}), pd.DataFrame({"score": [1.0]}))
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_is_there_is_never_replaced(tmp_path: Path):
    for score in (1, 0):
        write_cell(tmp_path / "task", cell_of(score), pd.DataFrame({"score": [float(score)]}))
    found = read_cell(tmp_path / "task")
    assert found is not None
    assert found[0].score == 1
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_missing_is_none_and_broken_is_an_error_that_names_the_file(tmp_path: Path):
    assert read_json(tmp_path / "no.json") is None
    assert read_cell(tmp_path / "no") is None
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"bytes.json is not valid JSON"):
        read_json(tmp_path / "bytes.json")
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"broken\.json is not valid JSON \(.*changed from outside"):
        read_json(tmp_path / "broken.json")
    write_cell(tmp_path / "cell", cell_of(1), pd.DataFrame({"a": [1]}))
    (tmp_path / "cell" / "samples.parquet").write_text("broken")
    with pytest.raises(RunError, match=r"cell/samples\.parquet .*results\.json .*evaluate again"):
        read_cell(tmp_path / "cell")
    with pytest.raises(RunError, match=r"cell/samples\.parquet is not a Parquet file; .*evaluate again"):
        read_parquet(tmp_path / "cell" / "samples.parquet")


HOLD = """
import sys, time
from pathlib import Path
from harness.rundir.store import RunStore
with RunStore(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_while_one_works_and_let_in_after_it_was_killed(tmp_path: Path):
    store = RunStore(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refusal = "is in use by another process; wait for it or choose another --out"
        with pytest.raises(RunError, match=refusal), store.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
    with store.locked():
        pass


def config(**changes: Any) -> Manifest:
    found = {"name": "x", "training": {"steps": 2, "optimizer": {"lr": 1.0}}, "seed": 0, **changes}
    return manifest_of(config=found, config_hash=json.dumps(found, sort_keys=True))


def test_a_new_run_writes_its_manifest_and_the_same_run_keeps_it(tmp_path: Path):
    assert RunStore(tmp_path).manifest is None
    store = RunStore(tmp_path)
    store.start(config().model_copy(update={"start": "first"}), Session(command="one"))
    store.start(config().model_copy(update={"start": "second"}), Session(command="two"))
    found = store.manifest
    assert found is not None
    assert found.start == "first"
    assert found.version == SCHEMA
    assert [session.command for session in found.sessions] == ["one", "two"]


def test_another_configuration_is_refused_naming_the_keys_that_differ(tmp_path: Path):
    store = RunStore(tmp_path)
    store.start(config(), Session())
    before = (tmp_path / "manifest.json").read_bytes()
    other = config(training={"steps": 3, "optimizer": {"lr": 2.0}}, probe="new")
    with pytest.raises(RunError, match=r"probe, training\.optimizer\.lr, training\.steps\); .*--out"):
        store.start(other, Session())
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_directory_of_another_schema_is_refused(tmp_path: Path):
    write_json(tmp_path / "manifest.json", {**config().as_json(), "schema": 99})
    with pytest.raises(RunError, match=rf"manifest\.json .*schema 99, .*\b{SCHEMA} or 2\b"):
        RunStore(tmp_path).start(config(), Session())


def test_a_session_records_what_it_took_and_the_last_one_that_the_run_is_complete(tmp_path: Path):
    store = RunStore(tmp_path)
    store.start(config(), Session(seconds={"train": 1.0}))
    store.start(config(), Session())
    store.record({"start": "s"}, seconds={"train": 2.0})
    found = store.manifest
    assert found is not None
    assert (found.weights, found.finished) == ({"start": "s"}, None)
    store.finish({"stage_1": "t"}, seconds={"train": 3.0}, peak_memory={"of": "process"})
    found = store.manifest
    assert found is not None
    assert found.finished
    assert found.config == config().config
    assert found.weights == {"start": "s", "stage_1": "t"}
    assert [session.seconds for session in found.sessions] == [{"train": 1.0}, {"train": 3.0}]


def test_training_starts_in_an_empty_folder(tmp_path: Path):
    folder = StageFolder(tmp_path / "stage_1_x")
    train = folder.open_training()
    (train / "steps.jsonl").write_text("half a step")
    (train / "checkpoint").mkdir()
    (train / "checkpoint" / "model.safetensors").write_text("half a model")
    assert folder.training_done is None
    assert list(folder.open_training().iterdir()) == []
    write_json(train / "done.json", {"weights": "w", "steps": 2})
    assert folder.training_done == DoneFile(weights="w", steps=2)
    assert folder.checkpoint == train / "checkpoint"


def test_a_snapshot_keeps_the_folder_of_an_interrupted_training(tmp_path: Path):
    folder = StageFolder(tmp_path / "stage_1_x")
    train = folder.open_training()
    (train / "steps.jsonl").write_text("a step")
    (train / "snapshot.pt").write_text("weights")
    assert {path.name for path in folder.open_training().iterdir()} == {"steps.jsonl", "snapshot.pt"}


def test_stage_folders_have_their_contracts_names(tmp_path: Path):
    store = RunStore(tmp_path)
    assert store.stage(0).path == tmp_path / "stage_0"
    assert store.stage(2, "tiny_weather").path == tmp_path / "stage_2_tiny_weather"
    assert store.stage(0).cell("t") == tmp_path / "stage_0" / "eval" / "t"


def test_stderr_goes_to_the_log_of_children_too_and_back_to_the_terminal_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    def fail() -> None:
        with stderr_to(tmp_path / "run" / "log.txt"):
            subprocess.run([sys.executable, "-c", "import sys; print('a child', file=sys.stderr)"], check=True)
            os.write(2, b"a library\n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
    with stderr_to(tmp_path / "run" / "log.txt"):
        os.write(2, b"again\n")
    assert (tmp_path / "run" / "log.txt").read_text().splitlines() == ["a child", "a library", "again"]


def test_a_run_whose_hash_had_the_last_part_of_a_hub_id_goes_on_and_another_owner_s_model_does_not(tmp_path: Path):
    def of(student: str) -> Manifest:
        found = {"name": "x", "student": {"kind": "pretrained", "path": student}}
        return manifest_of(config=found, config_hash=digest(identity_of(found)))

    store = RunStore(tmp_path)
    earlier = of("Qwen/Qwen3-8B").model_copy(update={"config_hash": of("Qwen3-8B").config_hash})
    store.start(earlier, Session())
    store.refuse_another(of("Qwen/Qwen3-8B"))
    with pytest.raises(RunError, match=r"student\.path"):
        store.refuse_another(of("acme/Qwen3-8B"))


def test_a_run_whose_loss_averages_over_micro_batches_goes_on_with_the_same_sizes(tmp_path: Path):
    """`reduction: micro_batch_mean`, also of an adapter that another one wraps; any other run may change them."""
    averaged = {"adapter": "aopd", "options": {"reduction": "micro_batch_mean"}}
    raw = {**micro_suite(), "adapters": {"opd": {}, "averaged": averaged}}
    raw["adapters"]["replayed"] = {"adapter": "replay", "options": {"of": averaged}}
    file = str(write_yaml(tmp_path / "suite.yaml", raw))
    one, other = (load_suite(file, [f"training.micro_batch={size}"]) for size in (1, 2))
    for entry, refused in (("opd", False), ("averaged", True), ("replayed", True)):
        specs = [RunSpec(suite, entry, 0, out=tmp_path) for suite in (one, other)]
        manifests = [manifest_of(config=spec.config(), config_hash=spec.config_hash) for spec in specs]
        store = RunStore(specs[0].path)
        store.path.mkdir(parents=True)
        store.start(
            manifests[0].model_copy(update={"sessions": ()}), Session(settings=session_settings(specs[0].config()))
        )
        store.refuse_another(manifests[0])
        with pytest.raises(RunError, match="the loss depends on it") if refused else nullcontext():
            store.refuse_another(manifests[1])
        own = RunSpec(load_suite(file, [f"adapters.{entry}.training.micro_batch=2"]), entry, 0, out=tmp_path)
        with pytest.raises(RunError, match="the loss depends on it") if refused else nullcontext():
            store.refuse_another(manifest_of(config=own.config(), config_hash=own.config_hash))
