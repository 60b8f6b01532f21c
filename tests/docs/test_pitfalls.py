"""`docs/pitfalls.md` shows what the markers of the tests say, and every guard names a file that exists."""

from __future__ import annotations

from tests.docs.pitfalls import PAGE, ROOT, read_pitfalls, render_page


def test_the_page_is_written_from_the_markers():
    assert PAGE.read_text(encoding="utf-8") == render_page(read_pitfalls()), "run `make pitfalls`"


def test_every_pitfall_is_described_once():
    titles = [pitfall.title for pitfall in read_pitfalls()]
    assert len(set(titles)) == len(titles) > 0


def test_every_guard_names_a_file_that_exists():
    for pitfall in read_pitfalls():
        words = pitfall.guard.split("`")[1::2]
        named = [word for word in words if word.endswith(".py") or word in ("Makefile", "pyproject.toml")]
        assert named, f"{pitfall.title}: name the file of the guard in backticks"
        assert all((ROOT / name).is_file() for name in named), f"{pitfall.title}: {named}"
