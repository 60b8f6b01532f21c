"""The documentation lists what the code writes: every column and field of the run directory is explained there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.commands.adapter_list import adapter_page
from adapters.loop.diagnostics import StepLog
from adapters.loop.training_loop import LoopAdapter
from harness.adapter import registered
from harness.config.evaluation import Evaluation
from harness.config.load import load_suite
from harness.config.study_file import Factor
from harness.config.suite import AdapterEntry, Stage, Suite
from harness.evaluation.drift import DriftAnswers
from harness.evaluation.scoring import FIXED
from harness.lm.rollouts import Example, Rollout
from harness.pipeline.adapter_checks import check_adapters
from harness.pipeline.sweeps.study_runs import plan_study
from harness.rundir.process.session import PeakMemory
from harness.rundir.records.cell_records import DRIFT_FIGURES
from harness.rundir.records.training_records import StepLine
from harness.rundir.schema_page import fill_tables
from harness.rundir.training.rollout_log import COLUMNS, STALE_COLUMNS
from reports.claims.claim_file import read_claims

PAGE_FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (PAGE_FOLDER / "run-directory.md").read_text(encoding="utf-8")
# What follows from the rest, and what the loop itself is.
DERIVED = {"requirements", "capabilities", "token_losses", "train_stage", "closed_form", "follows_updates"}


def documented(heading: str) -> set[str]:
    """Return all names in backticks under a heading."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in section if part.startswith(f"{heading}\n")]
    return set(re.findall(r"`([^`]+)`", found))


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("manifest.json", {"sessions", "seconds", "peak_memory", *PeakMemory("cpu").summary}),
        ("eval: samples.parquet", set(FIXED)),
        ("train/rollouts.parquet", {*COLUMNS.names, *STALE_COLUMNS.names}),
        ("drift", {*DRIFT_FIGURES, *DriftAnswers.__dataclass_fields__, "prompt_tokens", "response_tokens"}),
    ],
)
def test_every_column_is_documented(heading: str, names: set[str]):
    assert names - documented(heading) == set()


def test_the_pages_field_tables_are_the_schemas():
    assert fill_tables(PAGE) == PAGE


def test_every_record_that_is_written_has_a_table_whose_every_row_says_what_it_means():
    rows = re.findall(r"^\| `\w+` \| *(.*?) *\|$", PAGE, flags=re.MULTILINE)
    assert "" not in rows
    for record in ("Manifest", "Session", "CellSummary", "DoneFile", "StepLine", "DriftSummary"):
        assert f"<!-- fields of {record} -->" in PAGE


def test_every_field_of_the_step_log_is_in_the_schema():
    drawn = Rollout(Example("task", "item", {}, [1], [2]), [2], "stop", staleness=0)
    assert {*StepLog([drawn]).summary(), "step", "seconds", "warnings"} == set(StepLine.model_fields)


def test_all_that_a_method_of_the_loop_may_override_is_in_the_guide():
    guide = (PAGE_FOLDER / "add-an-adapter.md").read_text(encoding="utf-8")
    table = guide.split("| of `LoopAdapter` |")[1].split("\n\n")[0]
    own = {name for name in vars(LoopAdapter) if not name.startswith(("_", "model_"))} - set(LoopAdapter.model_fields)
    own |= {"teacher_needs", *LoopAdapter.__annotations__} - set(LoopAdapter.model_fields)
    named = {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")}
    assert own - named == DERIVED


def test_the_suite_in_the_guide_is_read_and_every_key_is_in_its_table(tmp_path: Path):
    guide = (PAGE_FOLDER / "write-a-suite.md").read_text(encoding="utf-8")
    text, *_ = re.findall(r"^```yaml\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "my-suite.yaml").write_text(text, encoding="utf-8")
    suite = load_suite(str(tmp_path / "my-suite.yaml"), ["stages.1.training.steps=20"])
    assert [stage.training.steps for stage in suite.stages] == [100, 20]
    assert set(check_adapters(suite)) == {"opd", "aopd", "aopd_k8"}
    described = {name for row in guide.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)}
    assert {
        *Suite.model_fields,
        *Evaluation.model_fields,
        *Stage.model_fields,
        *AdapterEntry.model_fields,
    } - described == set()


def test_the_study_in_the_guide_is_planned_and_its_claims_are_read(tmp_path: Path):
    guide = (PAGE_FOLDER / "write-a-study.md").read_text(encoding="utf-8")
    files = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    plan = plan_study(str(tmp_path / "replay.yaml"), out=tmp_path / "runs")
    assert [read_claims(name).primary for name in plan.study.claims] == [("ends-higher", "learns-as-much")]
    assert {point.spec.entry for point in plan.points} == {"none", "aopd", "aopd_replay"}
    described = {name for row in guide.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)}
    assert set(Factor.model_fields) - described == set()


def test_the_page_of_adapters_is_what_the_adapters_say():
    page = (PAGE_FOLDER / "adapters.md").read_text(encoding="utf-8")
    assert page == adapter_page(), "write it again: harness adapters --markdown > docs/adapters.md"


def test_every_method_states_its_loss():
    assert [name for name, point in registered().items() if name != "none" and not point.load().formula] == []


def test_the_public_face_loads_no_torch_and_the_list_of_adapters_no_transformers():
    heavy = "[m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'peft', 'trl') if m in sys.modules]"
    face = f"import sys, adapters, harness.adapter; print({heavy})"
    listing = f"import sys; from adapters.commands.adapter_list import adapter_table; adapter_table(); print({heavy})"
    printed = [subprocess.check_output([sys.executable, "-c", code], text=True).strip() for code in (face, listing)]
    assert printed == ["[]", "['torch']"]


def test_every_name_of_the_public_face_loads():
    import adapters

    source = (PAGE_FOLDER.parent / "adapters" / "__init__.py").read_text(encoding="utf-8")
    typed = set(re.findall(r"import \w+ as (\w+)", source))
    assert typed == set(dir(adapters)) & typed
    assert all(getattr(adapters, name) is not None for name in typed)


def test_every_test_that_the_page_of_promises_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (PAGE_FOLDER / "reliability.md").read_text(encoding="utf-8")))
    folder = PAGE_FOLDER.parent / "tests"
    files = [path.read_text(encoding="utf-8") for path in folder.rglob("test_*.py")]
    assert len(named) > 50
    assert named - {name for text in files for name in re.findall(r"def (test_\w+)", text)} == set()
