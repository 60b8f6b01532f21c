"""Reading tool calls out of an answer, and three graders for them side by side.

What a model thinks in `<think>` is not its answer: only what follows the last `</think>` is read. An answer with at least one
`Action: NAME` line followed by `Action Input:` is read in that form; any other is searched for JSON objects
`{"name": ..., "arguments": {...}}`, alone, in lists, and in envelopes such as `{"tool_calls": [{"function": {...}}]}`, whose
arguments may be JSON in a text. JSON is read by a real scanner, so nesting, braces in strings, Markdown fences, line ends of
any system and text around the calls do no harm.

Not given: an argument whose value is `""` or `null`, or equals the default that the tool declares for it, counts as
not given, in the answer and in the reference alike, at the top level of the arguments only. Everything else must be
there and nothing more. Numbers compare by value (1 is 1.0), `true` is not 1, `"1"` is not 1, lists keep their order,
the order of arguments never matters. A placeholder in a reference accepts any given value of its argument.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import TaskError
from tasks.answers import single_answer

FENCE = r"(?:`{1,3}\w*\s*)?"
ACTION = re.compile(rf"^[ \t]*Action:[ \t]*(?P<name>\S.*?)[ \t]*\n\s*Action Input:\s*{FENCE}", re.MULTILINE)
ENVELOPES = ("tool_calls", "tool_call", "function_call", "function", "calls")
CALLS_FORM = '[{"name": "weather", "arguments": {"city": "Oslo"}}]'
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One tool call; `arguments` is None where a call was begun but its input is not a JSON object."""

    name: str
    arguments: dict[str, Any] | None


@dataclass(frozen=True)
class Reference:
    """One golden call, with the arguments that accept any value and the tool's declared defaults."""

    name: str
    arguments: dict[str, Any]
    placeholders: frozenset[str] = frozenset()
    defaults: dict[str, Any] = field(default_factory=dict)


def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """Grade one answer against `doc["calls"]` with every grader; all lie between 0 and 1.

    Raises `TaskError` for a document whose `calls` are missing or have another form, see `load_references`.
    """
    if "calls" not in doc:
        raise TaskError(
            f"the tool-call graders read the field `calls`, and the item has {', '.join(doc)}; expected the right calls as a "
            f"list, or as its JSON text, such as {CALLS_FORM}"
        )
    calls, references = parse_calls(single_answer(results)), load_references(doc["calls"])
    return {
        "strict": strict(calls, references),
        "sdft": sdft(calls, references),
        "aopd": aopd(calls, references),
        "parsed": float(any(call.arguments is not None for call in calls)),
    }


def strict(calls: Sequence[Call], references: Sequence[Reference]) -> float:
    """Return 1 if all calls are there, in the reference's order, with exact names and arguments, else 0."""
    pairs = zip(calls, references, strict=False)
    return float(len(calls) == len(references) and all(_same_call(call, reference) for call, reference in pairs))


def sdft(calls: Sequence[Call], references: Sequence[Reference]) -> float:
    """Return 1 if names agree as a multiset and all arguments, merged over the calls, agree, else 0.

    After the score used with arXiv 2601.19897. Ours: of an argument that several calls give the last one counts, and
    values compare as in `strict`, where circulating versions find calls with a regular expression.
    """
    if Counter(call.name for call in calls) != Counter(reference.name for reference in references):
        return 0.0
    if any(call.arguments is None for call in calls):
        return 0.0
    merged = {key: value for call in calls for key, value in (call.arguments or {}).items()}
    return float(_same_arguments(merged, _merge(references)))


def aopd(calls: Sequence[Call], references: Sequence[Reference]) -> float:
    """Return 1 if the first call agrees, 0.5 if only its name does, else 0; upper and lower case are the same."""
    if not calls or not references or calls[0].name.casefold() != references[0].name.casefold():
        return 0.0
    arguments = calls[0].arguments
    return 1.0 if arguments is not None and _same_arguments(arguments, references[0], fold=True) else 0.5


def parse_calls(text: str) -> list[Call]:
    """Return all tool calls in a text, in order; never raises, whatever the text is."""
    thought, closed, rest = text.replace("\r\n", "\n").rpartition("</think>")
    answer = rest if closed else (thought + rest).partition("<think>")[0]
    return _action_calls(answer) if ACTION.search(answer) else _json_calls(answer)


def render_actions(references: Iterable[Reference]) -> str:
    """Write calls as `Action:` and `Action Input:` lines, the text a supervised learner is trained on."""
    lines = [
        f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}" for call in references
    ]
    return "\n".join(lines)


def render_json(reference: Reference) -> str:
    """Write one call as compact bare JSON."""
    call = {"name": reference.name, "arguments": reference.arguments}
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def dump_references(references: Iterable[Reference]) -> str:
    """Write references as the JSON text that documents carry in `calls`."""
    return json.dumps([{**vars(call), "placeholders": sorted(call.placeholders)} for call in references])


def load_references(calls: str | Sequence[Any]) -> list[Reference]:
    """Read references from a document's `calls`: a list of `name` and `arguments`, or its JSON text.

    `placeholders` (names of arguments) and `defaults` (an object) may be left out. Raises `TaskError` for another form.
    """
    try:
        listed: Any = json.loads(calls) if isinstance(calls, str) else calls
    except ValueError as error:
        raise TaskError(f"the field `calls` is not JSON ({error}); expected a list such as {CALLS_FORM}") from error
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise TaskError(f"the field `calls` holds {type(listed).__name__}; expected a list such as {CALLS_FORM}")
    return [_load_reference(call) for call in listed]


def _load_reference(call: Any) -> Reference:
    fields = call if isinstance(call, Mapping) else {}
    arguments = fields.get("arguments")
    if isinstance(arguments, str):
        arguments, _ = decode_object(arguments.strip())
    if not isinstance(fields.get("name"), str) or not isinstance(arguments, Mapping):
        raise TaskError(
            f"the field `calls` holds {json.dumps(call, default=str):.80}; expected a `name` and `arguments` (an object), "
            f"such as {CALLS_FORM}"
        )
    placeholders, defaults = fields.get("placeholders") or (), fields.get("defaults") or {}
    return Reference(fields["name"], dict(arguments), frozenset(placeholders), dict(defaults))


def decode_object(text: str, start: int = 0) -> tuple[dict[str, Any] | None, int]:
    """Read the JSON object that begins at `start`; return it and where it ends, or None and `start`."""
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return (value, end) if isinstance(value, dict) else (None, start)


def _action_calls(text: str) -> list[Call]:
    calls: list[Call] = []
    position = 0
    while match := ACTION.search(text, position):
        arguments, position = decode_object(text, match.end())
        calls.append(Call(match["name"], arguments))
    return calls


def _json_calls(text: str) -> list[Call]:
    calls: list[Call] = []
    position = text.find("{")
    while position >= 0:
        value, end = decode_object(text, position)
        calls += _calls_in(value)
        position = text.find("{", max(end, position + 1))
    return calls


def _calls_in(value: Any) -> list[Call]:
    """Return the calls of a JSON value: itself, or those in an envelope around them."""
    if isinstance(value, list):
        return [call for part in value for call in _calls_in(part)]
    if not isinstance(value, dict):
        return []
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        arguments, _ = decode_object(arguments.strip())
    if isinstance(value.get("name"), str) and isinstance(arguments, dict):
        return [Call(value["name"], arguments)]
    return [call for name in ENVELOPES if name in value for call in _calls_in(value[name])]


def _same_call(call: Call, reference: Reference) -> bool:
    same_name = call.name == reference.name
    return same_name and call.arguments is not None and _same_arguments(call.arguments, reference)


def _same_arguments(arguments: Mapping[str, Any], reference: Reference, fold: bool = False) -> bool:
    answer = _given(arguments, reference.defaults, fold)
    wanted = _given(reference.arguments, reference.defaults, fold)
    free = {_folded(key, fold) for key in reference.placeholders}
    same_keys = answer.keys() == wanted.keys()
    return same_keys and all(key in free or _same_value(answer[key], wanted[key], fold) for key in wanted)


def _given(arguments: Mapping[str, Any], defaults: Mapping[str, Any], fold: bool) -> dict[str, Any]:
    """Leave out what counts as not given (see the module's docstring)."""
    return {
        _folded(key, fold): value
        for key, value in arguments.items()
        if value is not None and value != "" and not (key in defaults and _same_value(value, defaults[key], fold))
    }


def _same_value(left: Any, right: Any, fold: bool) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, str) and isinstance(right, str):
        return _folded(left, fold) == _folded(right, fold)
    if isinstance(left, list) and isinstance(right, list):
        same_length = len(left) == len(right)
        return same_length and all(_same_value(a, b, fold) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        left, right = ({_folded(key, fold): value for key, value in side.items()} for side in (left, right))
        return left.keys() == right.keys() and all(_same_value(left[key], right[key], fold) for key in right)
    return not isinstance(left, str | list | dict) and left == right


def _folded(text: str, fold: bool) -> str:
    return text.casefold() if fold else text


def _merge(references: Sequence[Reference]) -> Reference:
    """Merge several references into one: of an argument that several give, the last one's value or placeholder."""
    arguments: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    placeholders: set[str] = set()
    for reference in references:
        placeholders = (placeholders - reference.arguments.keys()) | reference.placeholders
        arguments |= reference.arguments
        defaults |= reference.defaults
    return Reference("", arguments, frozenset(placeholders), defaults)
