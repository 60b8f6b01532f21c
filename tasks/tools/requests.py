"""The tiny suite's tool families: a short request in one of several phrasings, answered by one JSON call.

`weather in Oslo on monday at 9?` is answered by `{"name":"weather","arguments":{"city":"Oslo","day":"monday","hour":9}}`.
The words are few, so that a tokenizer of about 400 entries and a model of less than a million parameters learn them.
A test item's call never occurs in training, whatever the phrasing, and in no other test item: a model that knows a call knows
it in all its phrasings, so several phrasings of a call would count as several items and be worth little more than one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from datasets import DatasetDict

from harness.errors import TaskError
from tasks.splits import disjoint_splits
from tasks.tools.toolcalls import Reference, dump_references, render_json

OPENINGS = ("", "hi, ", "please: ", "quick: ")

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Paris", "Kyoto", "Delhi", "Quito", "Accra", "Turin",
          "Basel", "Porto", "Seoul", "Tunis", "Dakar", "Milan", "Lagos", "Riga", "Bonn", "Nice")  # fmt: skip
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF", "SEK", "INR", "BRL")
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jon", "Kim", "Leo")
CHORES = ("tea", "milk", "rent", "gym", "bins", "cake", "plants", "pills", "email", "laundry", "train", "call")


@dataclass(frozen=True)
class Family:
    """One tool: the values each argument can take, and the ways to ask for it."""

    arguments: dict[str, Sequence[Any]]
    phrasings: tuple[str, ...]


FAMILIES = {
    "weather": Family(
        {"city": CITIES, "day": DAYS, "hour": range(8, 20)},
        ("weather in {city} on {day} at {hour}?", "will it rain at {hour} on {day} in {city}?",
         "{day} at {hour} in {city}: weather?", "is {city} warm on {day} at {hour}?"),
    ),
    "currency": Family(
        {"amount": range(1, 51), "from": CURRENCIES, "to": CURRENCIES},
        ("change {amount} {from} to {to}", "how much is {amount} {from} in {to}?", "{amount} {from} into {to}",
         "give me {to} for {amount} {from}"),
    ),
    "calendar": Family(
        {"who": NAMES, "day": DAYS, "hour": range(6, 24)},
        ("meet {who} on {day} at {hour}", "book {who} at {hour} on {day}", "{day} at {hour}: see {who}",
         "add {who} for {day} at {hour}"),
    ),
    "reminder": Family(
        {"who": NAMES, "what": CHORES, "minutes": range(5, 65, 5)},
        ("remind {who} of {what} in {minutes} minutes", "in {minutes} minutes: {what} for {who}",
         "{what} for {who} in {minutes} minutes", "tell {who} in {minutes} minutes: {what}"),
    ),
}  # fmt: skip


def tool_requests(*, family: str, train_size: int, test_size: int, data_seed: int, **_: Any) -> DatasetDict:
    """Generate requests for one tool family; the same arguments always give the same items.

    Documents have `prompt`, `target` (the call as compact JSON) and `calls` (the graders' reference).
    Raises `TaskError` for an unknown family, or where the words allow fewer items than the sizes ask for.
    """
    if family not in FAMILIES:
        raise TaskError(f"tool family {family!r} is not one of {', '.join(FAMILIES)}")
    return disjoint_splits(_requests(family, random.Random(data_seed)), train_size, test_size)


def _requests(name: str, rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Go through all combinations in random order; the call is the key, so its phrasings stay on one side."""
    family = FAMILIES[name]
    combinations = list(product(OPENINGS, family.phrasings, product(*family.arguments.values())))
    rng.shuffle(combinations)
    for opening, phrasing, values in combinations:
        arguments = dict(zip(family.arguments, values, strict=True))
        if name != "currency" or arguments["from"] != arguments["to"]:
            doc = _document(opening + phrasing.format(**arguments), Reference(name, arguments))
            yield doc["target"], doc


def _document(prompt: str, call: Reference) -> dict[str, str]:
    return {"prompt": prompt, "target": render_json(call), "calls": dump_references([call])}
