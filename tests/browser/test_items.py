"""A page of answers that changed: filters, search, clear and counter do what they say; without scripts all is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import Open
from tests.browser.opened import Opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

FILTERS = ("method", "seed", "comparison", "change")


@pytest.fixture
def items(report: Path, open_page: Open) -> Opened:
    """The task's page with the most answers."""
    return open_page(longest(report))


def longest(report: Path) -> Path:
    return max(report.glob("items/*.html"), key=lambda file: file.stat().st_size)


def shown(found: Opened) -> list[dict[str, str]]:
    """Return the data of the answers that a reader sees, and their text."""
    return found.page.eval_on_selector_all(
        "article", "all => all.filter(a => a.checkVisibility()).map(a => ({...a.dataset, text: a.textContent}))"
    )


def counter(found: Opened) -> str:
    return found.page.locator("#shown").inner_text()


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_leaves_exactly_the_answers_with_its_value(items: Opened, name: str):
    everything = shown(items)
    choice = items.page.locator(f"select[name={name}]")
    values = [value for value in choice.locator("option").evaluate_all("all => all.map(o => o.value)") if value]
    assert values == list(dict.fromkeys(values))
    assert set(values) == {item[name] for item in everything}
    for value in values:
        choice.select_option(value)
        wanted = [item for item in everything if item[name] == value]
        assert shown(items) == wanted
        assert counter(items) == f"{len(wanted)} of {len(everything)} shown"
    assert items.complaints == []


def test_filters_and_search_hold_together_and_clear_takes_them_all_back(items: Opened):
    everything = shown(items)
    assert counter(items) == f"{len(everything)} of {len(everything)} shown"
    one = everything[-1]
    word = max(one["text"].split(), key=len)
    for name in FILTERS:
        items.page.locator(f"select[name={name}]").select_option(one[name])
    items.page.get_by_role("searchbox").fill(f"  {word.upper()} ")
    fits = [item for item in everything if all(item[n] == one[n] for n in FILTERS) and word in item["text"]]
    assert one in fits
    assert len(fits) < len(everything)
    assert shown(items) == fits
    items.page.get_by_role("button", name="Clear").click()
    items.page.wait_for_function(
        "n => document.getElementById('shown').textContent.startsWith(n)", arg=f"{len(everything)} of"
    )
    assert shown(items) == everything
    assert items.page.get_by_role("searchbox").input_value() == ""


def test_search_wants_every_word_anywhere_and_says_when_nothing_fits(items: Opened):
    everything = shown(items)
    search = items.page.get_by_role("searchbox")
    search.fill("nowhere-to-be-found")
    assert shown(items) == []
    assert counter(items) == f"0 of {len(everything)} shown"
    search.fill("seed lost")
    assert shown(items) == [item for item in everything if "lost" in item["text"].lower()]


def test_prompt_expected_and_both_answers_are_side_by_side(items: Opened):
    article = items.page.locator("article").first
    assert article.locator("dt").all_inner_texts() == ["Prompt", "Expected"]
    before, after = (side.bounding_box() for side in article.locator(".sides > div").all())
    assert before is not None
    assert after is not None
    assert before["y"] == after["y"]
    assert before["x"] + before["width"] <= after["x"]
    assert abs(before["width"] - after["width"]) < 2


def test_without_scripts_everything_is_there_and_the_page_says_what_needs_them(report: Path, open_page: Open):
    file = longest(report)
    with_scripts = open_page(file)
    without = open_page(file, java_script_enabled=False)
    assert without.page.locator("#filters").is_hidden()
    assert (
        without.page.locator("noscript p").inner_text() == "Filters and search need scripts; all the answers are below."
    )
    assert without.page.locator("article").all_inner_texts() == with_scripts.page.locator("article").all_inner_texts()
    assert without.page.locator("noscript p").is_visible()
    assert with_scripts.page.locator("noscript p").count() == 0
    text = [
        open_page(report / "report.html", java_script_enabled=on).page.locator("body").inner_text()
        for on in (True, False)
    ]
    assert text[0] == text[1]
