"""The score matrix of checkpoints that were trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.config.suite import Suite
from harness.errors import ModelError
from harness.lm.checkpoints import weights_digest
from harness.pipeline.checkpoint_matrix import evaluate_checkpoints, matrix_table
from harness.rundir.files import read_cell


def test_foreign_checkpoints_give_a_matrix_with_one_row_each(
    micro: Suite, student_folder: Path, teacher_folder: Path, tmp_path: Path
):
    again = tmp_path / "again"
    shutil.copytree(student_folder, again)
    checkpoints = [student_folder, teacher_folder, again]
    (scores,) = evaluate_checkpoints(micro, checkpoints, tmp_path).values()
    assert list(scores.columns) == ["tiny_weather", "tiny_currency", "tiny_reminder"]
    assert list(scores.index) == [str(path) for path in checkpoints]
    folder = tmp_path / "micro" / "checkpoints"
    written = pd.read_csv(folder / "matrix.csv", index_col="checkpoint")
    pd.testing.assert_frame_equal(written, scores, check_names=False, check_dtype=False)
    weights: list[str] = []
    for index, path in enumerate(checkpoints):
        found = read_cell(folder / f"{index}_{path.name}" / "tiny_weather")
        assert found is not None
        assert found[0].score == scores.loc[str(path), "tiny_weather"]
        weights.append(found[0].weights)
    assert weights[0] == weights[2] != weights[1]
    assert matrix_table(scores).row_count == 3


SPOILED = {"tokenizer.json": '{"version": "9.0", "model": {}}', "config.json": '{"model_type": "qwen9"}'}


@pytest.mark.pitfall(
    "a checkpoint written by a different version of transformers may not load, which shows only at its turn",
    area="Small machines",
    guard="`harness/pipeline/checkpoint_matrix.py` reads every checkpoint before it evaluates the first",
    evidence="only the folder is looked for",
)
@pytest.mark.parametrize("name", SPOILED)
def test_every_checkpoint_is_read_before_time_is_spent_on_the_first(
    name: str, micro: Suite, student_folder: Path, tmp_path: Path, generations: list[int]
):
    shutil.copytree(student_folder, tmp_path / "later")
    (tmp_path / "later" / name).write_text(SPOILED[name])
    with pytest.raises(ModelError, match="later: not a causal language model"):
        evaluate_checkpoints(micro, [student_folder, tmp_path / "later"], tmp_path)
    assert generations == []


def test_a_checkpoint_that_changed_in_its_folder_is_evaluated_again(
    micro: Suite, student_folder: Path, teacher_folder: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    weights: list[str] = []
    for source in (student_folder, teacher_folder):
        shutil.copytree(source, folder, dirs_exist_ok=True)
        evaluate_checkpoints(micro, [folder], tmp_path / "out")
        found = read_cell(tmp_path / "out/micro/checkpoints/0_model/tiny_weather")
        assert found is not None
        weights.append(found[0].weights)
    assert weights == [weights_digest(student_folder), weights_digest(teacher_folder)]
