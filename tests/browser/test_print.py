"""The report on paper: nothing is cut off or coloured, folded parts are open, and a PDF holds every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser.conftest import Open

pytestmark = pytest.mark.browser

A4_INSIDE = (718, 1047)  # CSS pixels: 210 by 297 mm less 10 mm on each side
SHOWN = "all => all.map(details => [...details.children].slice(1).every(part => part.checkVisibility()))"
PRINTED = "look => [look.backgroundColor, look.breakInside]"
CUT = """() => [...document.querySelectorAll("main *, header *")]
  .filter(e => !e.closest("svg") && e.checkVisibility() && e.getBoundingClientRect().right > document.body.clientWidth + 1)
  .map(e => e.tagName + "." + e.className + ": " + e.textContent.slice(0, 60))"""


@pytest.mark.parametrize("name", ["report.html", "items"])
def test_nothing_is_cut_off_at_the_margin(report: Path, open_page: Open, name: str):
    file = report / name if name.endswith("html") else next(iter(sorted(report.glob("items/*.html"))))
    found = open_page(file, A4_INSIDE)
    found.page.emulate_media(media="print")
    assert found.ask(CUT) == []
    assert found.ask("document.documentElement.scrollWidth") <= A4_INSIDE[0]


def test_what_is_folded_on_the_screen_is_open_on_paper(report: Path, open_page: Open):
    found = open_page(report / "report.html", A4_INSIDE)
    closed = "details:not([open])"
    assert found.page.locator(closed).count() > 10
    assert not any(found.page.eval_on_selector_all(closed, SHOWN))
    found.page.emulate_media(media="print")
    assert all(found.page.eval_on_selector_all(closed, SHOWN))
    assert not found.page.locator("nav").is_visible()


def test_figures_and_rows_are_printed_on_white_and_in_one_piece(report: Path, open_page: Open):
    found = open_page(report / "report.html", A4_INSIDE)
    found.page.emulate_media(media="print")
    for part in ("figure", "tr"):
        looks = found.ask(f"[...document.querySelectorAll('main {part}')].map(e => getComputedStyle(e)).map({PRINTED})")
        assert looks
        assert {tuple(look) for look in looks} == {("rgba(0, 0, 0, 0)", "avoid")}


def test_dark_readers_print_dark_ink_on_white(report: Path, open_page: Open):
    found = open_page(report / "report.html", color_scheme="dark")
    found.page.emulate_media(media="print")
    look = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    assert found.ask(look) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]


def test_a_pdf_holds_every_page(report: Path, open_page: Open, tmp_path: Path):
    for file in (report / "report.html", *report.glob("items/*.html")):
        page = open_page(file).page
        data = page.pdf(path=tmp_path / "page.pdf", format="A4")
        assert data.startswith(b"%PDF-")
        assert len(re.findall(rb"/Type\s*/Page\b", data)) >= (8 if file.name == "report.html" else 1)
