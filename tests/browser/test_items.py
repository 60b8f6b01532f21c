"""The pages of answers: every stored answer can be read, choices and search do what they say, differences are marked."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from reports.report.build import build_report
from tests.browser.conftest import Open
from tests.browser.opened import Opened
from tests.support.reports.run_factory import write_run
from tests.support.runs import vouch

pytestmark = pytest.mark.browser

ITEMS, PER_PAGE = 30, 25
ANSWERS = ["one two three", "one 2 three", "one two three four"]
OUTCOMES = ["correct", "wrong", "truncated"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two methods whose answer and outcome on each item is known: item i gives answer i + stage."""
    root = tmp_path_factory.mktemp("answers")
    for adapter, seed in (("opd", 0), ("aopd", 0), ("aopd", 3)):
        run = write_run(root, adapter, seed, items=ITEMS)
        for file in run.rglob("samples.parquet"):
            stage, shift = int(file.parents[2].name.split("_")[1]), adapter == "aopd"
            rows = pd.read_parquet(file)
            places = [(number + stage + shift) % 3 for number in range(len(rows))]
            prompts = [f"question {number}" for number in range(len(rows))]
            given = {"response": [ANSWERS[i] for i in places], "outcome": [OUTCOMES[i] for i in places]}
            rows.assign(prompt=prompts, **given).to_parquet(file)
            vouch(file.with_name("results.json"))
    return build_report([root / "tiny"], root / "report").parent


@pytest.fixture
def page(answers: Path, open_page: Open) -> Opened:
    """The page of a trained task."""
    return open_page(answers / "items" / "tiny_arithmetic.html")


def choose(found: Opened, **values: str) -> None:
    for name, value in values.items():
        found.page.locator(f"select[name={name}]").select_option(value)


def shown(found: Opened) -> list[list[str]]:
    """Return each item's titles and answers in turn, without prompt and expected answer."""
    script = "all => all.map(a => [...a.querySelectorAll('.sides p, .sides pre')].map(e => e.textContent))"
    return found.page.eval_on_selector_all("article", script)


def counter(found: Opened) -> str:
    return found.page.locator("#shown").inner_text()


def test_every_item_is_there_through_all_stages_over_two_pages(page: Opened):
    assert counter(page) == f"{ITEMS} of {ITEMS} items"
    first = shown(page)
    assert len(first) == PER_PAGE
    page.page.get_by_role("button", name="Next page").click()
    everything = first + shown(page)
    assert len(everything) == ITEMS
    names = ["start", "after stage 1, tiny_arithmetic", "after stage 2, tiny_weather"]
    for number, texts in enumerate(everything):
        places = [(number + stage) % 3 for stage in range(3)]  # opd is chosen first
        assert texts[1::2] == [ANSWERS[place] for place in places]
        assert [title[2:] for title in texts[::2]] == [
            f"{n}: {OUTCOMES[p]}" for n, p in zip(names, places, strict=True)
        ]
    assert page.page.get_by_role("button", name="Next page").is_disabled()
    assert page.complaints == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_leaves_the_items_with_it_after_the_stage(page: Opened, outcome: str):
    choose(page, stage="1", outcome=outcome)
    assert counter(page) == f"10 of {ITEMS} items"
    assert all(texts[2].endswith(f"after stage 1, tiny_arithmetic: {outcome}") for texts in shown(page))


def test_lost_and_gained_are_against_what_is_compared(page: Opened):
    # Over a stage, correct becomes wrong, wrong truncated, truncated correct.
    choose(page, stage="2", outcome="lost")
    assert {(texts[1], texts[3]) for texts in shown(page)} == {(ANSWERS[0], ANSWERS[1])}
    choose(page, outcome="gained")
    assert {(texts[1], texts[3]) for texts in shown(page)} == {(ANSWERS[2], ANSWERS[0])}
    choose(page, against="start", outcome="lost")
    assert {(texts[1], texts[3]) for texts in shown(page)} == {(ANSWERS[0], ANSWERS[2])}
    choose(page, outcome="changed", against="before")
    assert counter(page) == f"{ITEMS} of {ITEMS} items"


def test_another_method_can_be_compared_at_the_same_stage(page: Opened):
    choose(page, method="aopd", seed="3", stage="0")
    other = page.page.locator("select[name=against] option", has_text="opd, seed 0").first
    choose(page, against=str(other.get_attribute("value")))
    first = shown(page)[0]
    assert first[0].endswith("opd, seed 0, start: correct")
    assert first[1::2] == [ANSWERS[0], ANSWERS[1]]


def test_marks_are_on_the_words_that_differ(page: Opened):
    choose(page, stage="1", outcome="lost")
    marks = page.page.locator("article").first.locator("mark")
    assert marks.all_inner_texts() == ["two", "2"]
    choose(page, outcome="gained")
    assert "".join(page.page.locator("article").first.locator("mark").all_inner_texts()).strip() == "four"


def test_search_wants_every_word_anywhere_and_clear_takes_all_choices_back(page: Opened):
    search = page.page.get_by_role("searchbox")
    search.fill(" QUESTION  two 7 ")
    assert [a.split()[1] for a in page.page.locator("article dd pre").all_inner_texts()[::2]] == ["7", "17", "27"]
    search.fill("nowhere-to-be-found")
    assert counter(page) == f"0 of {ITEMS} items"
    page.page.get_by_role("button", name="Clear").click()
    page.page.locator("#shown", has_text=f"{ITEMS} of {ITEMS} items").wait_for()


def test_a_cell_of_the_heatmap_leads_to_its_answers(answers: Path, open_page: Open):
    found = open_page(answers / "report.html")
    found.page.locator("#figure-retention a:visible").last.click()
    found.page.wait_for_url("**/items/**")
    chosen = [found.page.locator(f"select[name={name}]").input_value() for name in ("method", "seed", "stage")]
    assert chosen == ["aopd", "0", "2"]
    assert "tiny_long_sums" in found.page.title()
    assert found.complaints == []


def test_an_address_brings_the_same_choices_back(page: Opened, open_page: Open, answers: Path):
    choose(page, method="aopd", seed="3", stage="1", outcome="wrong", against="start")
    wanted, address = shown(page), page.page.url
    again = open_page(answers / "items" / "tiny_arithmetic.html")
    again.page.goto("about:blank")
    again.page.goto(address)
    assert shown(again) == wanted


def test_without_scripts_the_page_says_where_the_answers_are(answers: Path, open_page: Open):
    without = open_page(answers / "items" / "tiny_arithmetic.html", java_script_enabled=False)
    assert without.page.locator("#filters").is_hidden()
    assert "samples.parquet" in without.page.locator("noscript p").inner_text()


@pytest.mark.usefixtures("blank_figures")
def test_many_answers_stay_light(tmp_path: Path, open_page: Open):
    """200 items, 21 methods: a page shows a few answers at a time and holds a text once however often it was given."""
    for number in range(21):
        write_run(tmp_path, f"method{number}", items=200, scores=[[0.5, 0.1, 0.6]] * 3)
    report = build_report([tmp_path / "tiny"], tmp_path / "report").parent
    file = report / "items" / "tiny_arithmetic.html"
    assert file.stat().st_size < 500_000
    found = open_page(file)
    assert found.page.locator("article").count() == 25
    assert found.ask("document.querySelectorAll('*').length") < 2_000
    data = json.loads(found.page.locator("#data").text_content() or "")
    assert len(data["runs"]) == 21
    assert len(data["texts"]) == 3
