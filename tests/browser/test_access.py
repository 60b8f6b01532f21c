"""Everybody can use the report: by keyboard, with a screen reader, in light and dark mode; axe-core finds no violation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Open
from tests.browser.opened import Opened

pytestmark = pytest.mark.browser

REACHABLE = "a[href], summary, select, input, button, [tabindex='0']"


def page_of(report: Path, kind: str) -> Path:
    """Return the report's page, or the smallest of its pages of answers."""
    items = sorted(report.glob("items/*.html"), key=lambda file: file.stat().st_size)
    return report / "report.html" if kind == "report" else items[0]


def focused(found: Opened) -> dict[str, Any]:
    """Return the focused element: its place among the reachable elements, and how its focus is shown."""
    return found.ask(
        """async wanted => {
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          const one = document.activeElement, look = getComputedStyle(one), box = one.getBoundingClientRect();
          return {place: [...document.querySelectorAll(wanted)].indexOf(one), name: one.outerHTML.slice(0, 80),
                  outlined: look.outlineStyle !== "none" && parseFloat(look.outlineWidth) >= 2,
                  inside: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth};
        }""",
        REACHABLE,
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "items"])
def test_axe_finds_no_violation(report: Path, open_page: Open, kind: str, scheme: str, size: tuple[int, int]):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install -e '.[dev]'")
    found = open_page(page_of(report, kind), size, color_scheme=scheme, bypass_csp=True)
    found.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    # The parts of a figure have no role: the figure's text is its alternative.
    result = axe.Axe().run(found.page, {"exclude": ["figure svg > *"]}, rules)
    blamed = [(v["id"], node["html"][:200]) for v in result.response["violations"] for node in v["nodes"]]
    assert blamed == []
    assert len(result.response["passes"]) > 15


@pytest.mark.parametrize("kind", ["report", "items"])
def test_tab_reaches_every_control_in_order_and_shows_where_it_is(report: Path, open_page: Open, kind: str):
    found = open_page(page_of(report, kind))
    found.ask("document.fonts.ready.then(() => true)")
    reachable = found.page.locator(REACHABLE)
    seen = []
    for _ in range(reachable.count()):
        found.page.keyboard.press("Tab")
        seen.append(focused(found))
    hidden = set(found.ask(HIDDEN, REACHABLE))
    assert [one["place"] for one in seen][: reachable.count() - len(hidden)] == [
        place for place in range(reachable.count()) if place not in hidden
    ]
    assert [one["name"] for one in seen if one["place"] >= 0 and not (one["outlined"] and one["inside"])] == []


HIDDEN = """wanted => [...document.querySelectorAll(wanted)].map((one, place) => [one, place])
  .filter(([one]) => one.disabled || !one.checkVisibility() || one.closest("details:not([open])") && one.tagName !== "SUMMARY")
  .map(([, place]) => place)"""


@pytest.mark.parametrize("kind", ["report", "items"])
def test_the_first_tab_is_the_skip_link_and_leads_past_the_contents(report: Path, open_page: Open, kind: str):
    found = open_page(page_of(report, kind))
    skip = found.page.locator(".skip")
    assert not skip.evaluate("link => link.getBoundingClientRect().right > 0")
    found.page.keyboard.press("Tab")
    assert skip.evaluate("link => link === document.activeElement && link.getBoundingClientRect().left >= 0")
    found.page.keyboard.press("Enter")
    found.page.keyboard.press("Tab")
    assert found.ask("document.getElementById('content').contains(document.activeElement)")


def test_the_keyboard_opens_details_and_works_the_filters(report: Path, open_page: Open):
    found = open_page(report / "report.html")
    summary = found.page.locator("summary").first
    summary.focus()
    found.page.keyboard.press("Enter")
    assert summary.evaluate("one => one.parentElement.open")
    items = open_page(page_of(report, "items")).page
    items.locator("select[name=stage]").focus()
    items.keyboard.press("ArrowDown")
    assert items.locator("select[name=stage]").input_value() == "0"
    titles = items.locator("article .sides p").all_text_contents()  # of items below the window too
    assert titles
    assert all("start" in title for title in titles), titles


@pytest.mark.parametrize("kind", ["report", "items"])
def test_headings_are_in_order_under_a_single_first_one(report: Path, open_page: Open, kind: str):
    page = open_page(page_of(report, kind)).page
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", "all => all.map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_every_figure_and_table_has_words_for_who_cannot_see_it(report: Path, open_page: Open):
    page = open_page(report / "report.html").page
    figures = page.locator("figure svg").filter(visible=True)
    assert figures.count() == page.locator("figure").count() > 10
    names = [str(figure.get_attribute("aria-label")) for figure in figures.all()]
    assert min(len(name.split()) for name in names) >= 8, names
    assert len(set(names)) == len(names)
    tables = page.locator("table").all()
    assert all(table.locator("caption").text_content() for table in tables)
    assert all(table.locator("thead th[scope=col]").count() for table in tables)


def test_dark_changes_page_and_figures(report: Path, open_page: Open):
    looks = {}
    for scheme in ("light", "dark"):
        found = open_page(report / "report.html", color_scheme=scheme)
        looks[scheme] = found.ask(
            """() => {
              const of = (node, what) => getComputedStyle(node)[what];
              const svg = document.querySelector("#figure-entropy svg");
              const lines = [...svg.querySelectorAll("path")].map(path => of(path, "stroke")).filter(c => c !== "none");
              return {paper: of(document.body, "backgroundColor"), ink: of(svg, "color"), lines: [...new Set(lines)]};
            }"""
        )
    assert looks["light"]["paper"] == "rgb(255, 255, 255)"
    for part in ("paper", "ink"):
        assert looks["light"][part] != looks["dark"][part]
    # the methods' own colours change, the grey of rules stays
    changed = set(looks["light"]["lines"]) ^ set(looks["dark"]["lines"])
    assert {"rgb(0, 114, 178)", "rgb(213, 94, 0)", "rgb(88, 176, 232)", "rgb(240, 132, 56)"} <= changed
