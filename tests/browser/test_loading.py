"""The report of a real run loads without a complaint, asks for nothing outside its folder, and fits desktop and phone."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Open
from tests.browser.opened import overflowing

pytestmark = pytest.mark.browser


def pages(report: Path) -> list[Path]:
    """Return the report's page and those of its tasks."""
    return [report / "report.html", *sorted(report.glob("items/*.html"))]


def test_the_report_and_every_page_it_links_to_load_in_silence_and_from_its_folder(report: Path, open_page: Open):
    first = open_page(report / "report.html")
    links = first.links
    assert {report / "report.html", *report.glob("items/*.html")} == {
        Path(unquote(link.removeprefix("file://"))) for link in links
    }
    for link in links:
        first.page.goto(link)
    assert first.complaints == []
    assert len(first.requests) == 1 + len(links)
    assert first.strangers(report) == []


# The window shows the heading, below the contents; it scrolls there a frame after the click.
LEADS_THERE = """place => {
  const top = document.querySelector(place).getBoundingClientRect().top;
  return location.hash === place && top >= document.querySelector("nav").getBoundingClientRect().height - 1
    && top < innerHeight;
}"""


def test_every_entry_of_the_contents_leads_to_its_section(report: Path, open_page: Open):
    page = open_page(report / "report.html").page
    sections = page.locator("main > section").count()
    entries = page.locator("nav a")
    assert entries.count() == sections > 10
    for entry in entries.all():
        entry.click()
        page.wait_for_function(LEADS_THERE, arg=entry.get_attribute("href"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_is_wider_than_the_window(report: Path, open_page: Open, size: tuple[int, int]):
    for file in pages(report):
        found = open_page(file, size)
        found.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert overflowing(found) == [], file.name


def test_every_promised_part_is_on_the_page(report: Path, open_page: Open):
    page = open_page(report / "report.html").page
    text = page.locator("main").inner_text()
    drawn = {
        "frontier",
        "retention",
        "flips",
        "decomposition",
        "entropy",
        "drift",
        "routed",
        "advantage",
        "pulls",
        "cost",
    }
    assert drawn <= {str(figure.get_attribute("id")).removeprefix("figure-") for figure in page.locator("figure").all()}
    assert page.locator(".lead").first.inner_text().startswith("Under greedy decoding aopd learned ")
    assert "unmatched" in text
    assert "the lowest and of the highest hundredth" in text
    assert page.locator(".missing").count() == 0
    peaks = page.locator("#cost ~ .scroll table").locator("tbody tr td:nth-of-type(4)").all_inner_texts()
    assert len(peaks) == 2
    assert all(0.1 < float(peak) < 20 for peak in peaks)


@pytest.mark.parametrize(("size", "shown"), [(DESKTOP, ".wide"), (PHONE, ".narrow")], ids=["desktop", "phone"])
def test_a_phone_gets_figures_whose_panels_are_stacked(
    report: Path, open_page: Open, size: tuple[int, int], shown: str
):
    page = open_page(report / "report.html", size).page
    for name in ("frontier", "retention", "learning", "forgetting"):
        figure = page.locator(f"#figure-{name}")
        assert figure.locator("svg").filter(visible=True).count() == 1
        box = figure.locator(f"{shown} svg").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
