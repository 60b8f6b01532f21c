"""ToolAlpaca's records in their three forms, read into one document schema (Tang et al. 2023, arXiv 2306.05301).

| form        | recognised by                    | one item is                                                  |
|-------------|----------------------------------|--------------------------------------------------------------|
| `apis`      | a list of APIs with `Instances`  | an instance with `intermediate_steps` [[action, input, log]] |
| `rows`      | rows with `golden_answer`        | a finished `prompt` with [{Action, Action_Input}]            |
| `simulated` | APIs with `Golden_Answers`       | an instruction with [{Action, Action_Input}]; only evaluates |

Which golden calls are covered: the tool is one of the API's (or `getDetails`), and the input is a JSON object once
each `${VALUE from TOOL}` outside quotes is put in quotes. Such a placeholder must be the whole value of a top-level
argument and TOOL must be called earlier in the same reference; it then accepts any value of its argument. An item
with any other `${`, or with one call that is not covered, is left out with its reason; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import TaskError
from tasks.tools.toolcalls import Reference, decode_object, dump_references, render_actions

PLACEHOLDER = re.compile(r"\$\{[^{}\"]+ from (?P<tool>[\w-]+)\}")
UNQUOTED = re.compile(rf'(?<!"){PLACEHOLDER.pattern}(?!")')

ASK_USER = """getDetails: Ask the user for something that the request leaves out and a tool requires.
Parameters: {"Question": "Required. string. The question to the user."}
Output: The user's answer."""

PROMPT = """These tools are available:

{tools}

Request: {instruction}

Answer with the tool calls that fulfil the request, in order and nothing else, each as two lines:
Action: the tool's name
Action Input: its arguments as one JSON object
For a value that only an earlier call will return, write "${{VALUE from TOOL}}"."""


@dataclass(frozen=True)
class LeftOut:
    """One item that the rule does not cover."""

    api: str
    instruction: str
    reason: str


@dataclass(frozen=True)
class Records:
    """A file's documents, and what was left out of them.

    Documents have `api`, `category`, `instruction`, `tools`, `prompt`, `target` (the supervised text) and `calls`
    (the graders' reference), all text; `rows` leave empty what they do not say.
    """

    form: str
    docs: list[dict[str, str]]
    left_out: list[LeftOut]


class NotCoveredError(Exception):
    """An item that the rule above does not cover; the message is the reason."""


def read_records(path: str | Path) -> Records:
    """Read a file of any of the three forms; raises `TaskError` for a missing file or any other content."""
    raw = _read_json(Path(path))
    form = _form(raw, Path(path))
    docs: list[dict[str, str]] = []
    left_out: list[LeftOut] = []
    for item in _items(form, raw, Path(path)):
        try:
            docs.append(_document(item))
        except NotCoveredError as reason:
            left_out.append(LeftOut(item.api, item.instruction or item.prompt, str(reason)))
    return Records(form, docs, left_out)


def read_reference(name: str, golden: Any, earlier: Collection[str], defaults: Mapping[str, Any]) -> Reference:
    """Read one golden call; `earlier` are the tools called before it. Raises `NotCoveredError` with the reason."""
    arguments = golden if isinstance(golden, dict) else _read_input(str(golden))
    placeholders = {key for key, value in arguments.items() if isinstance(value, str) and PLACEHOLDER.fullmatch(value)}
    for key in sorted(placeholders):
        tool = PLACEHOLDER.fullmatch(arguments[key])
        if tool and tool["tool"] not in earlier:
            raise NotCoveredError(f"{arguments[key]} names no earlier call")
    if "${" in json.dumps([value for key, value in arguments.items() if key not in placeholders]):
        raise NotCoveredError(f"a placeholder without source in {json.dumps(arguments)}")
    return Reference(name, arguments, frozenset(placeholders), dict(defaults))


@dataclass(frozen=True)
class _Item:
    """One instruction with its golden calls, whatever the file's form."""

    api: str
    category: str
    instruction: str
    tools: str
    prompt: str
    golden: list[tuple[str, Any]]
    defaults: dict[str, dict[str, Any]]
    known_tools: frozenset[str] | None


def _items(form: str, raw: Any, path: Path) -> list[_Item]:
    try:
        return list(_ITEMS[form](raw))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise TaskError(f"ToolAlpaca: {path} has a record unlike the form `{form}` ({error!r}); correct it") from error


def _document(item: _Item) -> dict[str, str]:
    if not item.golden:
        raise NotCoveredError("no tool call")
    references: list[Reference] = []
    for name, golden in item.golden:
        if item.known_tools is not None and name not in item.known_tools:
            raise NotCoveredError(f"{name} is not one of the API's tools")
        earlier = [reference.name for reference in references]
        references.append(read_reference(name, golden, earlier, item.defaults.get(name, {})))
    texts = {key: getattr(item, key) for key in ("api", "category", "instruction", "tools", "prompt")}
    return {**texts, "target": render_actions(references), "calls": dump_references(references)}


def _read_input(text: str) -> dict[str, Any]:
    """Read a golden input as JSON, as it is or else with its unquoted placeholders put in quotes."""
    for candidate in (text, UNQUOTED.sub(lambda match: f'"{match[0]}"', text)):
        arguments, end = decode_object(candidate.strip())
        if arguments is not None and end == len(candidate.strip()):
            return arguments
    raise NotCoveredError(f"input is no JSON object: {text}")


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise TaskError(f"ToolAlpaca: {path} does not exist; give the path of a JSON or JSON-lines file")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise TaskError(f"ToolAlpaca: {path} is not valid JSON ({error})") from error


def _form(raw: Any, path: Path) -> str:
    """Say which form the content has, judged by the keys of all its records."""
    records = raw if isinstance(raw, list) and raw and all(isinstance(record, dict) for record in raw) else []
    for form, key in (("simulated", "Golden_Answers"), ("rows", "golden_answer"), ("apis", "Instances")):
        if records and all(key in record for record in records):
            return form
    if any("Instances" in record for record in records):
        return "apis"
    found = f"a list of records with {sorted(records[0])}" if records else type(raw).__name__
    raise TaskError(
        f"ToolAlpaca: {path} holds {found}; expected a list of APIs with `Instances`, of rows with `prompt` and "
        "`golden_answer`, or of APIs with `Golden_Answers`"
    )


def _api_items(apis: Iterable[Mapping[str, Any]]) -> Iterator[_Item]:
    for api in apis:
        for instance in api.get("Instances") or []:
            steps = [step[0] for step in instance.get("intermediate_steps") or []]
            instruction = str(instance["input"]).partition("\nHint: ")[0]
            yield _api_item(api, instruction, [(str(step[0]), step[1]) for step in steps])


def _simulated_items(apis: Iterable[Mapping[str, Any]]) -> Iterator[_Item]:
    for api in apis:
        for instruction, golden in zip(api["Instructions"], api["Golden_Answers"], strict=True):
            yield _api_item(api, instruction, _golden_pairs(golden))


def _row_items(rows: Iterable[Mapping[str, Any]]) -> Iterator[_Item]:
    for row in rows:
        if not isinstance(row.get("prompt"), str):
            raise ValueError(f"a row's prompt is {row.get('prompt')!r}, expected text")
        texts = {key: str(row.get(key) or "") for key in ("api", "category", "instruction", "tools")}
        golden = _golden_pairs(row["golden_answer"])
        yield _Item(**texts, prompt=row["prompt"], golden=golden, defaults={}, known_tools=None)


_ITEMS = {"apis": _api_items, "rows": _row_items, "simulated": _simulated_items}


def _golden_pairs(golden: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    return [(str(call["Action"]), call["Action_Input"]) for call in golden]


def _api_item(api: Mapping[str, Any], instruction: str, golden: list[tuple[str, Any]]) -> _Item:
    described = api.get("Function_Description") or {}
    known = frozenset(described) - {"components"} | {"getDetails"} if described else None
    tools = f"{ASK_USER}\n{api.get('NLDocumentation') or api.get('Functions') or ''}".strip()
    return _Item(
        api=str(api["Name"]),
        category=str(api.get("Category") or ""),
        instruction=instruction,
        tools=tools,
        prompt=PROMPT.format(tools=tools, instruction=instruction),
        golden=golden,
        defaults=_declared_defaults(api.get("Documentation")),
        known_tools=known,
    )


def _declared_defaults(documentation: Any) -> dict[str, dict[str, Any]]:
    """Return each operation's argument defaults as its OpenAPI schema declares them; prose is not read."""
    spec = documentation
    if isinstance(documentation, str):
        spec, _ = decode_object(documentation.strip())
    operations = [operation for path in _at(spec, "paths").values() for operation in _at(path).values()]
    return {str(_at(operation).get("operationId")): dict(_defaults_of(_at(operation))) for operation in operations}


def _defaults_of(operation: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    parameters = [_at(parameter) for parameter in operation.get("parameters") or []]
    schemas = {parameter.get("name"): _at(parameter, "schema") for parameter in parameters}
    body = _at(operation, "requestBody", "content", "application/json", "schema", "properties")
    for name, schema in [*schemas.items(), *body.items()]:
        if "default" in _at(schema):
            yield str(name), schema["default"]


def _at(value: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping below `keys`, or an empty one where there is none: real specifications are incomplete."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
