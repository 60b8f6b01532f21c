"""The page docs/add-a-section.md is enough: its module and its change of the list make a section of both pages of a report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from reports.report import sections
from reports.report.build import build_report
from tests.support.reports.run_factory import write_run

PAGE = Path(__file__).parents[3] / "docs" / "add-a-section.md"
FOLDER = Path(str(sections.__file__)).parent


def block(language: str) -> str:
    """Return the page's one block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found


def module(name: str, source: str) -> ModuleType:
    """Return a module made of a text."""
    made = ModuleType(name)
    exec(compile(source, str(PAGE), "exec"), made.__dict__)
    return made


def changed_list(diff: str) -> str:
    """Return the list's file with the page's lines added: each goes after the line above it."""
    text = Path(str(sections.__file__)).read_text(encoding="utf-8")
    for above, added in re.findall(r"^ (.*)\n\+(.*)$", diff, flags=re.MULTILINE):
        assert text.count(f"{above}\n") == 1, "the page shows a line that the file has once"
        text = text.replace(f"{above}\n", f"{above}\n{added}\n")
    return text


@pytest.mark.usefixtures("blank_figures")
def test_a_section_is_one_module_and_its_place_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = f"{sections.__name__}.speed_section"
    monkeypatch.setitem(sys.modules, name, module(name, block("python")))
    monkeypatch.setattr(sections, "speed_section", sys.modules[name], raising=False)
    monkeypatch.setattr(sections, "MAKERS", module("changed", changed_list(block("diff"))).MAKERS)
    write_run(tmp_path, "opd")
    page = build_report([tmp_path], tmp_path / "report")
    html, markdown = (file.read_text(encoding="utf-8") for file in (page, page.with_suffix(".md")))
    assert '<a href="#speed">Speed</a>' in html
    assert "## Speed of training" in markdown
    assert re.search(r"\| opd \| [\d,]+ \|", markdown)


def test_every_module_of_a_section_is_in_the_list():
    listed = {make.__module__.rpartition(".")[2] for make in sections.MAKERS}
    assert listed == {path.stem for path in FOLDER.glob("*_section.py")}
