"""Texts that try to run code, load files, reorder or overflow the page stay texts: in prompts, answers, notes and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest

from harness.terminal.sanitize import show_hidden
from reports.report.build import build_report
from tests.browser.chromium import DESKTOP, PHONE
from tests.browser.conftest import Open
from tests.browser.opened import overflowing
from tests.support.reports.run_factory import HOSTILE, TAUGHT, write_run
from tests.support.runs import vouch

CHANGED = "items/tiny_arithmetic.html"
pytestmark = pytest.mark.browser

TEXTS = {
    "script": HOSTILE,
    "quotes": "\"'` onfocus=alert(1) autofocus x=\"' --> ]]> </pre></article></main><style>*{display:none}</style>",
    "svg": "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg><iframe src=http://evil.example>",
    "right to left": "before \u202eolleh\u202c after \u2066isolated\u2069 \u05e9\u05dc\u05d5\u05dd",
    "long": "W" * 1_000,
    "template": "{{7*7}} {% raw %} ${7*7} #{7*7}",
    "null": "before\x00after\x1b[31m\x9b",
    "half a character": "before\ufffeafter \U0001f600",
    "comment": "<!-- <script> <!-- --!> <title>owned</title> <base href=http://evil.example>",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt; &#x202e; &amp;amp;",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of runs whose every stored text is one of the hostile ones."""
    root = tmp_path_factory.mktemp("hostile")
    for adapter in ("opd", "aopd"):
        for seed in (0, 1):
            run = write_run(root, adapter, seed, items=len(TEXTS) * 2, logged=TAUGHT | {"warnings": [*TEXTS.values()]})
            for file in run.rglob("samples.parquet"):
                poison(file)
    return build_report([root / "tiny"], root / "report").parent


def poison(file: Path) -> None:
    """Replace every prompt, expected and given answer of a cell."""
    samples = pd.read_parquet(file)
    texts = [text for text, _ in zip(cycle(TEXTS.values()), samples["prompt"], strict=False)]
    samples.assign(prompt=texts, target=texts, response=texts).to_parquet(file)
    vouch(file.with_name("results.json"))


def files(hostile: Path) -> Iterator[Path]:
    yield hostile / "report.html"
    yield from sorted(hostile.glob("items/*.html"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_runs_loads_or_bursts(hostile: Path, open_page: Open, size: tuple[int, int]):
    for file in files(hostile):
        found = open_page(file, size)
        found.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
        found.page.wait_for_timeout(100)
        assert found.complaints == []
        assert found.requests == [file.as_uri()]
        assert overflowing(found) == []
        assert found.page.locator("script").count() == (0 if file.name == "report.html" else 2)
        assert found.page.locator("iframe, object, embed, base, img, pre *, article style").count() == 0
        assert found.ask(HANDLERS) == []
        assert "owned" not in found.page.title()


HANDLERS = """() => [...document.querySelectorAll("*")].flatMap(e => [...e.attributes])
  .filter(a => a.name.startsWith("on") || /^\\s*javascript:/i.test(a.value)).map(a => a.name + "=" + a.value)"""


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text_is_read_letter_by_letter(hostile: Path, open_page: Open, name: str):
    page = open_page(hostile / CHANGED).page
    answers = page.locator("article pre").all_text_contents()
    assert answers.count(show_hidden(TEXTS[name])) >= 4  # prompt, expected and both answers
    assert "49" not in "".join(answers)


def test_a_mark_that_turns_text_around_is_named_and_turns_nothing(hostile: Path, open_page: Open):
    page = open_page(hostile / CHANGED).page
    text = "".join(page.locator("article").all_text_contents())
    assert "\u202e" not in text
    assert "before ⟨U+202E⟩olleh⟨U+202C⟩ after" in text
    assert "before⟨U+0000⟩after⟨U+001B⟩[31m⟨U+009B⟩" in text


def test_filters_and_search_work_on_hostile_texts(hostile: Path, open_page: Open):
    page = open_page(hostile / CHANGED).page
    page.locator("select[name=method]").select_option("aopd")
    page.get_by_role("searchbox").fill("</script><script>alert('owned')")
    shown = page.locator("article:visible")
    assert shown.count() > 0
    assert all("</script><script>alert('owned')" in text for text in shown.all_text_contents())
