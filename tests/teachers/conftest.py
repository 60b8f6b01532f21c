"""The student and its teacher in this process, which tests of served teachers compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.models import Scratch
from harness.config.suite import Suite
from harness.lm.checkpoints import Loaded, load_checkpoint
from harness.teachers.local import LocalTeacher, open_local


@pytest.fixture(scope="module")
def student(micro: Suite, student_folder: Path) -> Loaded:
    return load_checkpoint(student_folder, micro.student, "cpu")


@pytest.fixture(scope="module")
def local(micro: Suite, teacher_folder: Path, student: Loaded) -> LocalTeacher:
    assert isinstance(micro.teacher, Scratch)
    return open_local(micro.teacher, teacher_folder, student, "cpu")
