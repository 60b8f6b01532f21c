"""Links and file names in the documentation lead to files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"]
# History names files as they were.
HISTORY = {
    *(ROOT / "docs" / "decisions").glob("*.md"),
    *(ROOT / "docs" / "results").glob("*.md"),
    ROOT / "CHANGELOG.md",
}
FOLDERS = r"(?:harness|adapters|reports|tasks|tests|benchmarks|docs)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in links if target and not re.match(r"\w+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", sorted(set(PAGES) - HISTORY), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_files_exist(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = re.findall(rf"`({FOLDERS}/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
