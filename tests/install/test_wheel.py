"""The built wheel holds everything a user needs, and works in an empty folder of an environment without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install only the wheel; its dependencies come from this environment, the checkout does not."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin/pip"), "install", "--quiet", "--no-deps", str(wheel)], check=True)
    return venv


def harness(venv: Path, folder: Path, *args: str) -> str:
    # PYTHONPATH adds the dependencies but ignores the .pth file through which the checkout itself is installed.
    env = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"], "HARNESS_CACHE": str(folder / "cache")}
    done = subprocess.run([str(venv / "bin/harness"), *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_four_packages_with_their_files_and_no_tests(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for path in [p for folder in ("tasks", "reports", "harness", "adapters") for p in (ROOT / folder).rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.split("/")[0] in {"tests", "benchmarks", "docs", "runs"}]


def test_installed_wheel_plans_the_tiny_suite_in_an_empty_folder(installed: Path, tmp_path: Path):
    output = harness(installed, tmp_path, "run", "tiny", "--dry-run")
    assert "tiny_arithmetic" in output
    assert "nothing was written" in output
    assert list(tmp_path.iterdir()) == []


def test_installed_wheel_lists_its_own_tasks(installed: Path, tmp_path: Path):
    output = harness(installed, tmp_path, "tasks")
    assert "gsm8k" in output
    assert str(ROOT) not in output
