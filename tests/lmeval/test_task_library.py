"""Task files that are refused before time is spent, each in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.base import digest
from harness.config.evaluation import Decoding
from harness.errors import TaskError
from harness.lmeval.checks import check_stage_task
from harness.lmeval.generation_settings import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.rundir.schema import Session
from harness.rundir.store import RunStore
from tests.support.lmeval import made_up
from tests.support.models import TASK_FILE, write_task, write_yaml
from tests.support.reports.records import manifest_of


def test_only_generating_tasks_with_training_items_can_be_stages(tmp_path: Path):
    check_stage_task(made_up(tmp_path / "good"))
    with pytest.raises(TaskError, match=r"task made_up .*no `training_split`"):
        check_stage_task(made_up(tmp_path / "untrained", training_split=None))
    doc = {"prompt": "1+1", "target": "2", "answers": ["1", "2"], "label": 1}
    choice = made_up(
        tmp_path / "choice", docs={"train": [doc], "test": [doc]}, output_type="multiple_choice", doc_to_target="label",
        doc_to_choice="answers", generation_kwargs=None, grader=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        metadata={"version": 1.0},
    )  # fmt: skip
    with pytest.raises(TaskError, match=r"task made_up is multiple_choice; .*generate_until"):
        check_stage_task(choice)
    settle_generation(choice, Decoding())


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run directory as far as its manifest."""
    folder = tmp_path / "runs" / "seed0"
    RunStore(folder).path.mkdir(parents=True)
    RunStore(folder).start(manifest_of(config={}, config_hash=digest({})), Session())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(TaskError) as error:
        TaskLibrary([folder])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_name(library: TaskLibrary):
    with pytest.raises(TaskError) as error:
        library.load("tiny_wether")
    assert "'tiny_wether'" in str(error.value)
    assert "did you mean tiny_weather" in str(error.value)


@pytest.mark.slow
def test_a_built_in_task_of_lm_eval_can_be_named(library: TaskLibrary):
    assert "hellaswag" not in library.names()
    assert "hellaswag" in library._manager_of("hellaswag").all_subtasks


@pytest.mark.pitfall(
    "lm-eval skips a YAML file that does not parse and then reports its task as unknown",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` parses every file first, and errors name file and line",
    evidence="files are not parsed first",
)
def test_broken_yaml_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text("task: broken\noutput_type: generate_until\ndoc_to_text: [prompt\nmetadata: 1\n")
    assert refusal(tmp_path).startswith(f"{path} line 4: not valid YAML")


@pytest.mark.pitfall(
    "lm-eval skips a task file whose `include` does not exist and then reports its task as unknown",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` follows includes when it parses the files",
    evidence="a missing include is ignored",
)
def test_a_missing_include_is_named(tmp_path: Path):
    path = tmp_path / "lonely.yaml"
    path.write_text("include: _common\ntask: lonely\n")
    found = refusal(tmp_path)
    assert str(path) in found
    assert "_common" in found


@pytest.mark.pitfall(
    "lm-eval ignores files that end in .yml",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses such a file and gives the name that it needs",
    evidence=".yml files are not looked for",
)
def test_a_yml_file_which_lm_eval_would_skip_is_refused(tmp_path: Path):
    path = tmp_path / "short.yml"
    path.write_text("task: short\n")
    found = refusal(tmp_path)
    assert found.startswith(f"{path}: ")
    assert found.endswith("short.yaml")


def test_a_yaml_that_is_not_a_mapping_is_named(tmp_path: Path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    assert str(path) in refusal(tmp_path)


def test_a_suite_next_to_task_files_is_no_task(tmp_path: Path):
    """Its `include` names folders, and lm-eval's names files."""
    write_task(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "my-suite.yaml").write_text("name: my-suite\ninclude: [mine]\nstages:\n- made_up\n")
    assert TaskLibrary([tmp_path]).load("made_up").name == "made_up"


def test_an_include_that_is_a_folder_is_named(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "lonely.yaml").write_text("include: mine\ntask: lonely\n")
    assert str(tmp_path / "lonely.yaml") in refusal(tmp_path)


@pytest.mark.pitfall(
    "lm-eval accepts a task folder that does not exist",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses it",
    evidence="a missing folder is ignored",
)
def test_a_missing_folder_is_refused(tmp_path: Path):
    assert refusal(tmp_path / "nowhere").startswith(f"task folder {tmp_path / 'nowhere'} does not exist")


def test_records_that_cannot_be_read_are_one_sentence_with_the_task(tmp_path: Path):
    write_task(tmp_path)
    (tmp_path / "made_up_code.py").write_text(
        "def records(**_):\n    raise OSError('disk on fire')\ndef grade(*_): ...\n"
    )
    with pytest.raises(TaskError, match=r"task made_up: OSError .*disk on fire"):
        TaskLibrary([tmp_path]).load("made_up")


@pytest.mark.pitfall(
    "data sets that are Python scripts do not load any more, and the error does not say what to do",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` says it in one sentence",
    evidence="the user sees the library's own error",
)
@pytest.mark.slow
def test_a_data_set_that_is_a_script_is_one_sentence_that_says_what_to_do(tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise RuntimeError('executed')")
    write_yaml(tmp_path / "made_up.yaml", {"task": "made_up", **TASK_FILE, "dataset_path": str(tmp_path / "old")})
    with pytest.raises(TaskError, match=r"old is a Python script, .*Parquet.*custom_dataset"):
        TaskLibrary([tmp_path]).load("made_up")


@pytest.mark.pitfall(
    "`!function` runs code that lies in the task's folder, so reading all files of a folder would run all of it",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` leaves functions as text when it checks files",
    evidence="functions are loaded",
)
def test_checking_files_executes_nothing(tmp_path: Path):
    mark = tmp_path / "executed"
    write_task(tmp_path)
    (tmp_path / "made_up_code.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    library = TaskLibrary([tmp_path])
    assert "made_up" in library.names()
    assert not mark.exists()
    with pytest.raises(TaskError, match="made_up"):  # its code has no records; loading is what executes it
        library.load("made_up")
    assert mark.exists()


@pytest.mark.pitfall(
    "a task file in a run directory, perhaps someone else's, would be executed",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses task files inside a run directory, and URLs",
    evidence="the refusal is removed",
)
def test_task_files_are_not_taken_from_a_run_directory_or_a_url(run_directory: Path):
    write_task(run_directory / "stage_0")
    for folder in (run_directory.parent, run_directory, run_directory / "stage_0"):
        assert refusal(folder).startswith(f"{run_directory / 'stage_0/made_up.yaml'} lies in the run directory")
    assert "does not exist" in refusal(Path("https://example.org/tasks"))
