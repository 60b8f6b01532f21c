"""The list of pitfalls is true of the code as it is: every mutation fits, every test exists, the page is the data's."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.pitfalls import PAGE, ROOT, Pitfall, cell, failures_on, read_pitfalls, render, row

PITFALLS = read_pitfalls()


@cache
def functions_of(file: str) -> set[str]:
    """Return the names of a file's test functions."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("entry", PITFALLS, ids=lambda entry: entry.name)
def test_a_mutation_fits_the_code_and_its_test_exists(entry: Pitfall):
    for edit in entry.mutation:
        found = (ROOT / edit.file).read_text(encoding="utf-8").count(edit.find)
        assert found == 1, f"{edit.find!r} stands {found} times in {edit.file}; mend tests/pitfalls.yaml"
        assert edit.replace != edit.find
    file, _, name = entry.test.partition("::")
    assert name.partition("[")[0] in functions_of(file)


def test_names_are_given_once_and_areas_stand_together():
    names, areas = [entry.name for entry in PITFALLS], [entry.area for entry in PITFALLS]
    assert len(set(names)) == len(names)
    assert [area for i, area in enumerate(areas) if area not in areas[:i]] == [
        area for i, area in enumerate(areas) if i == 0 or area != areas[i - 1]
    ]


def test_every_guard_names_a_file_that_is_there():
    for entry in PITFALLS:
        named = [word for word in entry.guard.split("`")[1::2] if "/" in word or word in ("Makefile", "pyproject.toml")]
        assert named, entry.name
        assert all((ROOT / file).is_file() for file in named), entry.guard


def test_the_page_shows_exactly_these_entries_with_what_their_tests_failed_with():
    page = PAGE.read_text(encoding="utf-8")
    failures = failures_on(page, PITFALLS)
    assert sorted(failures) == sorted(entry.name for entry in PITFALLS), "run `make mutations`"
    assert all(failures.values())
    assert page == render(PITFALLS, failures)


def test_a_failure_is_read_back_from_the_page_as_it_was_written():
    entry = PITFALLS[0]
    failure = cell("assert {'a | b'} == <c>")
    page = render([entry], {entry.name: failure})
    assert failures_on(page, [entry]) == {entry.name: failure}
    assert failure == "`assert {'a \\| b'} == <c>`"
    assert row(entry) in page
