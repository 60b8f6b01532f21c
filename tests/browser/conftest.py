"""A browser, the report of a real tiny run, and the report of runs whose every text is hostile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.chromium import CHROMIUM, DESKTOP, MISSING, chromium
from tests.browser.opened import Opened
from tests.support.models import learning_suite, write_yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    """Chromium; tests are skipped where it or Playwright is not installed."""
    pytest.importorskip("playwright", reason="needs Playwright: pip install -e '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(MISSING)
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def report(browser: Browser, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report that `harness sweep` makes of OPD and AOPD on two seeds of a suite that is done in two minutes.

    BROWSER_REPORT names an existing report, so that work on the page need not wait for the runs.
    """
    if given := os.environ.get("BROWSER_REPORT"):
        return Path(given).resolve()
    out = tmp_path_factory.mktemp("runs")
    suite = learning_suite()
    suite["stages"] = taught = ["tiny_weather", "tiny_currency", "tiny_calendar"]
    for side in ("student", "teacher"):
        suite[side]["tokenizer"] |= {"tasks": taught}
        suite[side]["warmup"] |= {"mixture": dict.fromkeys(taught, 1)}
    suite["evaluation"] |= {"limit": 10}
    file = write_yaml(tmp_path_factory.mktemp("suite") / "micro.yaml", suite)
    command = [sys.executable, "-m", "harness.cli.app", "sweep", str(file), "--adapter", "opd,aopd", "--seed", "0,1"]
    done = subprocess.run([*command, "--out", str(out)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out / "micro" / "report"


@pytest.fixture
def open_page(browser: Browser) -> Generator[Open]:
    """Open a file in a separate context with a test's options; every request and console message is recorded."""
    contexts = []

    def opened(file: Path, size: tuple[int, int] = DESKTOP, **asked: Any) -> Opened:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **asked)
        context.set_default_timeout(180_000)  # milliseconds: a busy machine is not a failure
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.goto(file.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()
