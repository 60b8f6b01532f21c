"""The page docs/add-a-section.md is enough: its module, added to the list, is a section of both pages of a report."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from reports.report import sections
from reports.report.build import build_report
from tests.support.reports.run_factory import write_run

PAGE = Path(__file__).parents[3] / "docs" / "add-a-section.md"


@pytest.mark.usefixtures("blank_figures")
def test_a_section_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    module = ModuleType("speed_section")
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setattr(sections, "MAKERS", (*sections.MAKERS, module.make_section))
    write_run(tmp_path, "opd")
    page = build_report([tmp_path], tmp_path / "report")
    html, markdown = (file.read_text(encoding="utf-8") for file in (page, page.with_suffix(".md")))
    assert '<a href="#speed">Speed</a>' in html
    assert "## Speed of training" in markdown
    assert re.search(r"\| opd \| [\d,]+ \|", markdown)
