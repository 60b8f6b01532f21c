"""Chromium without a screen, a network or first-start dialogs; tests and screenshots share it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
MISSING = "needs Debian's Chromium at /usr/bin/chromium: apt-get install -y --no-install-recommends chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
DESKTOP, PHONE = (1280, 900), (390, 844)


@contextmanager
def chromium() -> Generator[Browser]:
    """Start Chromium and close it at the end. Raises FileNotFoundError, with what to install, where there is none."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.exists():
        raise FileNotFoundError(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
