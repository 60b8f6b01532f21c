"""The real path on real records: GSM8K and ToolAlpaca are read, rendered, trained on and graded, and can be learnt."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pandas as pd
import pytest

from harness.config.load import load_suite
from harness.config.run_spec import RunSpec
from harness.pipeline.run import run
from reports.data.frames import load_frames
from reports.report.build import build_report
from tests.support.task_files import needs_shared_data

pytestmark = [pytest.mark.slow, pytest.mark.realdata, needs_shared_data, pytest.mark.timeout(1500)]

SUITE = "gsm8k-toolalpaca-smoke"
SHORT = ["training.steps=2", "training.max_new_tokens=32", "teacher.warmup.strengths.teacher.steps=4"]
SHORT += ["evaluation.limit=4", "evaluation.decoding.max_gen_toks=32"]


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Build the student once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def scores(folder: Path) -> pd.DataFrame:
    return load_frames([folder]).scores


def test_a_student_learns_real_records_of_each_task(tmp_path: Path):
    few = [
        "training.train_items=4",
        "training.prompts_per_step=4",
        "evaluation.limit=4",
        "adapters.sft.training.steps=60",
    ]
    suite = load_suite(SUITE, ["stages=[gsm8k_smoke, toolalpaca_smoke]", *few])
    folder = run(RunSpec(suite, "sft", 0, out=tmp_path / "runs"))
    table = scores(folder)
    own = table[(table["stage"] > 0) & (table["task"] == table["stage_task"])].set_index("task")["score"]
    assert set(own.index) == {"gsm8k_smoke", "toolalpaca_smoke"}
    assert (own >= 0.75).all(), own  # three of four


def test_the_smoke_suite_completes_with_a_report(tmp_path: Path):
    suite = load_suite(SUITE, SHORT)
    folders = [run(RunSpec(suite, entry, 0, out=tmp_path / "runs")) for entry in ("opd", "aopd")]
    page = build_report(folders, tmp_path / "report").read_text(encoding="utf-8")
    for task in suite.tasks:
        assert task in page
    assert len(scores(tmp_path / "runs")) == len(folders) * (1 + len(suite.stages)) * len(suite.tasks)
