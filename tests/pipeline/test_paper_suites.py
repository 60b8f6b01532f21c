"""The paper's suites run from warm-up to the last tool stage with stand-in models and a few local records."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.errors import TaskError
from harness.evaluation.groups import load_evaluation_plan
from harness.lmeval.checks import check_test_prompts, check_training_prompts
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.rundir.store import RunStore
from tests.support.models import byte_renderer
from tests.support.paper_files import write_paper_data, write_tool_data

SUITES = ["aopd-1.7b", "aopd-4b", "aopd-8b"]
PROBES = ["aime24_boxed", "aime25_boxed", "hmmt_feb25_boxed", "math500_boxed"]
STAGES = ["openthoughts", "deepmath", "toolalpaca_media", "toolalpaca_business", "toolalpaca_security"]


@pytest.mark.parametrize("name", SUITES)
def test_a_paper_suite_trains_with_the_papers_budget(name: str):
    suite = load_suite(name)
    planned = RunSpec(suite, "aopd_released", 0).stages
    assert [stage.name for stage in planned] == STAGES
    warm_up, math, *tools = [stage.training for stage in planned]
    assert (math.steps, math.prompts_per_step, math.max_new_tokens) == (201, 512, 12288)
    assert (warm_up.steps, warm_up.max_new_tokens) == (3000, 14336)
    assert suite.probes == tuple(PROBES)
    assert {tool.epochs for tool in tools} == {6}
    assert math.optimizer.lr == 1e-5
    (profile,) = suite.evaluation.all_profiles.values()
    assert (profile.n, profile.temperature, profile.top_p, profile.top_k) == (16, 0.6, 0.95, 20)


@pytest.mark.parametrize("name", SUITES)
def test_the_start_decides_the_budget_of_the_warm_up(name: str):
    weak, strong = load_suite(name, ["student.start=weak"]), load_suite(name)
    assert [suite.student.start_name for suite in (weak, strong)] == ["weak", "strong"]
    assert [suite.stages[0].training.steps for suite in (weak, strong)] == [1000, 3000]
    assert weak.stages[1:] == strong.stages[1:]


# From the config.json files of Qwen3-1.7B-Base and Qwen3-8B-Base; the 4B model's card has the same context.
CONTEXT = 32768
LONGEST_PROMPT = 4096  # the released code's limit


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("tokens", [LONGEST_PROMPT, LONGEST_PROMPT + 1])
def test_prompts_up_to_the_released_limit_fit_the_students_context_with_the_longest_answer(
    name: str, tokens: int, tmp_path: Path
):
    renderer = byte_renderer()
    data = {**write_paper_data(tmp_path / "math"), **write_tool_data(tmp_path / "tools")}
    template = len(renderer.encode_prompts([renderer.render([{"role": "user", "content": ""}])])[0])
    problem = {"problem": "x" * (tokens - template), "solution": "", "answer": "1"}
    Path(data["math500"], "test.jsonl").write_text(json.dumps(problem) + "\n")
    suite = load_suite(name, settings={f"data.{key}": path for key, path in data.items()})
    evaluated = load_evaluation_plan(TaskLibrary(suite.include, suite.data), suite)
    context = suite.context(CONTEXT)

    def longest(task: Task, limit: int | None, room: int) -> int:
        return renderer.longest_prompt(task.training_prompts(renderer, limit), room)

    check_training_prompts(RunSpec(suite, "aopd", 0), evaluated.tasks, context, longest)
    with nullcontext() if tokens == LONGEST_PROMPT else pytest.raises(TaskError, match="4097 tokens"):
        check_test_prompts(evaluated.cells.values(), renderer, context, 1, suite.evaluation.limit)


@pytest.mark.slow
def test_one_command_runs_a_paper_suite_with_stand_ins_and_reports(tmp_path: Path):
    harness(tmp_path, "sweep", "aopd-1.7b", "--set", "@stand-in", "--adapter", "opd,aopd", "--seed", "0")
    for entry in ("opd", "aopd"):
        check_run(tmp_path / "runs/aopd-stand-in" / entry / "default/seed0")
    report = (tmp_path / "runs/aopd-stand-in/report/report.md").read_text()
    for shown in ("opd", "aopd", *STAGES, *PROBES, "pass@2"):
        assert shown in report


@pytest.mark.slow
@pytest.mark.parametrize(("name", "entry"), [("aopd-4b", "aopd_released"), ("aopd-8b", "opd_released")])
def test_the_other_sizes_and_the_released_settings_run_through(name: str, entry: str, tmp_path: Path):
    harness(tmp_path, "run", name, "--set", "@stand-in", "--adapter", entry, "--no-report")
    check_run(tmp_path / "runs/aopd-stand-in" / entry / "default/seed0")


def harness(folder: Path, *arguments: str) -> None:
    """Do what a user types in a folder."""
    command = [sys.executable, "-m", "harness.cli.app", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_run(folder: Path) -> None:
    """Check that a run is finished and has evaluated every task after every stage."""
    manifest = RunStore(folder).manifest
    assert manifest is not None
    assert manifest.finished
    assert manifest.start == "strong"
    for stage in range(len(STAGES) + 1):
        evaluated = {path.name.split("@")[0] for path in folder.glob(f"stage_{stage}*/eval/*")}
        assert evaluated == {*STAGES, *PROBES}
