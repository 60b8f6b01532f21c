"""Reading tool calls and grading them: golden cases, and hostile text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import TaskError
from tasks.tools.toolcalls import (
    Call,
    Reference,
    aopd,
    dump_references,
    load_references,
    parse_calls,
    process_results,
    render_actions,
    render_json,
    sdft,
    strict,
)

NESTED = {"filter": {"tags": ["a", {"deep": [1, 2]}], "range": {"from": 1, "to": None}}, "limit": 3}


def one(arguments: dict[str, Any], answer: dict[str, Any], **reference: Any) -> float:
    """Grade one call's arguments under `strict`."""
    return strict([Call("tool", answer)], [Reference("tool", arguments, **reference)])


def test_bare_json_is_read_with_text_around_it():
    text = 'Sure: {"name": "weather", "arguments": {"city": "Oslo"}} - done.'
    assert parse_calls(text) == [Call("weather", {"city": "Oslo"})]


@pytest.mark.pitfall(
    "a regular expression ends a call at its first closing brace, so a perfect nested call scores 0",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` reads JSON with a scanner",
    evidence="a regular expression reads up to the first closing brace",
)
def test_nested_arguments_survive():
    assert parse_calls(json.dumps({"name": "search", "arguments": NESTED})) == [Call("search", NESTED)]


def test_braces_and_quotes_in_strings_survive():
    arguments = {"text": 'an "{odd}" } one { with \\ and \n'}
    assert parse_calls(json.dumps({"name": "echo", "arguments": arguments})) == [Call("echo", arguments)]
    assert parse_calls(f"Action: echo\nAction Input: {json.dumps(arguments)}") == [Call("echo", arguments)]


@pytest.mark.pitfall(
    "an answer in a different format than the prompt asks for is not read",
    area="ToolAlpaca",
    guard="`tasks/tools/toolcalls.py` reads the Action and Action Input lines that the prompt shows",
    evidence="only bare JSON is read",
)
@pytest.mark.pitfall(
    "the name of a tool may contain hyphens",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` takes the whole rest of the line",
    evidence="only word characters are read",
)
def test_several_calls_in_both_forms():
    calls = [Call("get-item", {"id": 1}), Call("put_item", {"id": 2, "tags": {"x": {}}})]
    as_json = "\n".join(json.dumps({"name": call.name, "arguments": call.arguments}) for call in calls)
    as_actions = "\n\n".join(f"Action: {call.name}\nAction Input: {json.dumps(call.arguments)}" for call in calls)
    as_list = json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
    assert parse_calls(as_json) == parse_calls(as_actions) == parse_calls(as_list) == calls


def test_thoughts_and_observations_between_actions_are_not_calls():
    text = (
        'Thought: {"name": 1}\nAction: a-b\nAction Input: {"x": 1}\nObservation: {"y": 2}\nAction: c\nAction Input: {}'
    )
    assert parse_calls(text) == [Call("a-b", {"x": 1}), Call("c", {})]


def test_an_action_with_broken_input_is_a_call_without_arguments():
    calls = parse_calls('Action: a\nAction Input: {"x": 1}\nAction: b\nAction Input: {"x": ')
    assert calls == [Call("a", {"x": 1}), Call("b", None)]
    assert strict(calls, [Reference("a", {"x": 1})]) == 0


def test_json_that_is_not_a_call_is_skipped():
    assert parse_calls('{"name": "a"} {"arguments": {}} {"name": 3, "arguments": {}} [1] {') == []
    assert parse_calls("no call at all") == []


@pytest.mark.pitfall(
    "1 and 1.0 are the same number, and true is not 1",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` compares numbers by value, and booleans separately",
    evidence="values are compared as JSON text",
)
def test_strict_compares_values_not_types_of_numbers():
    assert one({"n": 1}, {"n": 1.0}) == 1
    assert one({"n": 1}, {"n": True}) == 0
    assert one({"n": 0}, {"n": False}) == 0
    assert one({"n": 1}, {"n": "1"}) == 0
    assert one({"n": [1, 2]}, {"n": [2, 1]}) == 0
    assert one({"n": {"a": 1, "b": [True]}}, {"n": {"b": [1], "a": 1}}) == 0
    assert one({"n": {"a": 1, "b": [True]}}, {"n": {"b": [True], "a": 1.0}}) == 1


@pytest.mark.pitfall(
    "a grader that looks only at the first call gives full marks for half an answer",
    area="Grading",
    guard="in `tasks/tools/toolcalls.py`, `strict` requires every call, in order",
    evidence="`strict` compares only as many calls as the answer has",
)
@pytest.mark.pitfall(
    "the order of a call's arguments has no meaning",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` compares arguments by name",
    evidence="names must have the order of the reference",
)
def test_strict_ignores_the_order_of_arguments_but_not_of_calls():
    references = [Reference("a", {"x": 1, "y": 2}), Reference("b", {})]
    assert strict([Call("a", {"y": 2, "x": 1}), Call("b", {})], references) == 1
    assert strict([Call("b", {}), Call("a", {"x": 1, "y": 2})], references) == 0
    assert strict([Call("a", {"x": 1, "y": 2})], references) == 0
    assert strict([], references) == 0


def test_strict_wants_exact_names_and_keys():
    assert strict([Call("Tool", {})], [Reference("tool", {})]) == 0
    assert one({"a": 1}, {"a": 1, "b": 2}) == 0
    assert one({"a": 1, "b": 2}, {"a": 1}) == 0
    assert one({"a": "x"}, {"a": "X"}) == 0


@pytest.mark.pitfall(
    "an argument that is left out and one that states its default mean the same",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` treats declared defaults as not given",
    evidence="defaults are ignored",
)
def test_empty_and_default_values_count_as_not_given_on_both_sides():
    assert one({"a": 1, "b": "", "c": None}, {"a": 1}) == 1
    assert one({"a": 1}, {"a": 1, "b": "", "c": None}) == 1
    assert one({"a": 1, "page": 1}, {"a": 1}, defaults={"page": 1}) == 1
    assert one({"a": 1}, {"a": 1, "page": 1.0}, defaults={"page": 1}) == 1
    assert one({"a": 1, "page": 2}, {"a": 1}, defaults={"page": 1}) == 0
    assert one({"a": 1, "page": 1}, {"a": 1}) == 0
    assert one({"flag": False, "n": 0, "l": []}, {}) == 0


@pytest.mark.pitfall(
    "the record does not contain a value that comes from an earlier call, so a right answer never equals it",
    area="ToolAlpaca",
    guard="`tasks/tools/toolcalls.py` accepts any value that the answer gives for it",
    evidence="it is compared like any other value",
)
def test_a_placeholder_accepts_any_given_value():
    free = {"placeholders": frozenset({"id"})}
    assert one({"id": "${id from find}", "b": 1}, {"id": 77, "b": 1}, **free) == 1
    assert one({"id": "${id from find}"}, {"id": {"x": [1]}}, **free) == 1
    assert one({"id": "${id from find}", "b": 1}, {"b": 1}, **free) == 0
    assert one({"id": "${id from find}"}, {"id": ""}, **free) == 0
    assert one({"id": "${id from find}", "b": 1}, {"id": 77, "b": 2}, **free) == 0


@pytest.mark.pitfall(
    "the score used with SDFT takes names as a multiset and merges arguments, which strict does not",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` has it as a separate grader",
    evidence="sdft requires the names in order",
)
def test_sdft_takes_names_as_a_multiset_and_merges_arguments():
    references = [Reference("a", {"x": 1}), Reference("b", {"y": 2}), Reference("a", {"x": 1})]
    calls = [Call("b", {"x": 1}), Call("a", {"y": 2}), Call("a", {})]
    assert sdft(calls, references) == 1
    assert sdft(calls[:2], references) == 0
    assert sdft([*calls[:2], Call("a", {"x": 3})], references) == 0
    assert sdft([*calls[:2], Call("a", None)], references) == 0


def test_sdft_merges_placeholders_with_the_last_call_deciding():
    free, fixed = Reference("a", {"x": "${x from a}"}, frozenset({"x"})), Reference("a", {"x": 1})
    assert sdft([Call("a", {"x": 5}), Call("a", {"x": 6})], [fixed, free]) == 1
    assert sdft([Call("a", {"x": 5}), Call("a", {"x": 6})], [free, fixed]) == 0


@pytest.mark.pitfall(
    "papers grade the same calls differently, so one score cannot be compared with theirs",
    area="Grading",
    guard="`tasks/tools/toolcalls.py` gives the grades strict, sdft and aopd for every answer",
    evidence="aopd grades as strict does",
)
def test_aopd_looks_at_the_first_call_only_and_ignores_case():
    references = [Reference("getItem", {"Query": "Oslo", "n": 1}), Reference("other", {})]
    assert aopd([Call("GETITEM", {"query": "OSLO", "n": 1.0})], references) == 1
    assert aopd([Call("getitem", {"query": "Rome", "n": 1})], references) == 0.5
    assert aopd([Call("getitem", None)], references) == 0.5
    assert aopd([Call("other", {}), Call("getItem", {"Query": "Oslo", "n": 1})], references) == 0
    assert aopd([], references) == 0


def test_references_survive_their_text_form_and_score_one():
    references = [
        Reference("a-b", NESTED, frozenset({"limit"}), {"page": 1}),
        Reference("c", {"text": "}{ é \u2028"}),
    ]
    assert load_references(dump_references(references)) == references
    doc = {"calls": dump_references(references)}
    perfect = {"strict": 1.0, "sdft": 1.0, "aopd": 1.0, "parsed": 1.0}
    assert process_results(doc, [render_actions(references)]) == perfect
    assert process_results(doc, ["\n".join(render_json(reference) for reference in references)]) == perfect
    assert process_results(doc, ["nothing"]) == {"strict": 0.0, "sdft": 0.0, "aopd": 0.0, "parsed": 0.0}


@pytest.mark.pitfall(
    "a grader gets a text or, with repeats and take_first_k, a list of texts",
    area="lm-eval",
    guard="`tasks/answers.py` takes the one text out of both shapes and refuses several",
    evidence="the first entry is taken as it is",
)
def test_one_nested_sample_is_graded_and_several_are_refused():
    doc = {"calls": dump_references([Reference("a", {})])}
    answer = '{"name":"a","arguments":{}}'
    assert process_results(doc, [[answer]])["strict"] == 1
    with pytest.raises(TaskError, match="2 samples"):
        process_results(doc, [[answer, answer]])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=8,
)
pieces = st.sampled_from(
    ["{", "}", '"', "Action:", "Action: x", "\n", "Action Input:", '{"name":', '"arguments"', "[", "\\"]
)


@given(st.lists(pieces | st.text(max_size=5), max_size=30).map("".join))
def test_hostile_text_never_raises(text: str):
    doc = {"calls": dump_references([Reference("x", NESTED)])}
    assert all(0 <= score <= 1 for score in process_results(doc, [text]).values())


@pytest.mark.parametrize(
    "text", ["{" * 5000, '{"a":' * 5000, "[" * 90000, '{"name":"x","arguments":' * 3000, "1" * 9000]
)
def test_deep_nesting_never_raises(text: str):
    doc = {"calls": dump_references([Reference("x", {"a": 1})])}
    for answer in (text, f"Action: x\nAction Input: {text}", f'{{"name":"x","arguments":{{"a":{text}}}}}'):
        assert process_results(doc, [answer])["strict"] == 0


def test_an_answer_nested_as_deep_as_json_allows_is_graded():
    deep = '{"a":' * 400 + "1" + "}" * 400
    doc = {"calls": dump_references([Reference("x", {"a": 1})])}
    assert process_results(doc, [f"Action: x\nAction Input: {deep}"])["aopd"] == 0.5


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,10}", fullmatch=True), st.dictionaries(st.text(), json_values)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_reference_given_back_scores_one(calls: list[tuple[str, dict[str, Any]]]):
    references = [Reference(name, arguments) for name, arguments in calls]
    doc = {"calls": dump_references(references)}
    assert set(process_results(doc, [render_actions(references)]).values()) == {1.0}
    assert set(process_results(doc, ["\n".join(map(render_json, references))]).values()) == {1.0}


CALL = '{"name": "rain", "arguments": {"city": "Bern", "days": 2}}'
DRAFT = '{"name": "rain", "arguments": {"city": "Rome", "days": 9}}'
ACTIONS = 'Action: rain\nAction Input: {"city": "Bern", "days": 2}'


@pytest.mark.parametrize(
    "answer",
    [
        f"<think>Perhaps {DRAFT}? No.</think>\n{CALL}",
        f"<think>I will call {CALL}</think>\n{CALL}",
        f"<think>easy</think>{ACTIONS}",
        f"Perhaps {DRAFT}? No.</think>\n{CALL}",
        ACTIONS.replace("\n", "\r\n"),
        ACTIONS.replace("{", "```json\n{") + "\n```",
        f"```json\n{CALL}\n```",
        f'{{"tool_calls": [{CALL}]}}',
        f'{{"tool_calls": [{{"id": "1", "type": "function", "function": {CALL}}}]}}',
        '{"function_call": {"name": "rain", "arguments": "{\\"city\\": \\"Bern\\", \\"days\\": 2}"}}',
        f"[{CALL}]",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ],
)
def test_a_right_call_counts_after_thinking_with_any_line_ends_in_fences_and_in_envelopes(answer: str):
    references = dump_references([Reference("rain", {"city": "Bern", "days": 2})])
    assert process_results({"calls": references}, [answer]) == {"strict": 1, "sdft": 1, "aopd": 1, "parsed": 1}


@pytest.mark.parametrize(
    "answer", [f"<think>{CALL}", f"<think>{CALL}</think>", f'{{"plan": {CALL}, "tool_calls": [{DRAFT}]}}']
)
def test_a_call_inside_the_thinking_does_not_count(answer: str):
    references = dump_references([Reference("rain", {"city": "Bern", "days": 2})])
    assert process_results({"calls": references}, [answer])["strict"] == 0


@pytest.mark.parametrize(
    "calls", [[{"name": "rain", "arguments": {"city": "Bern"}}], '[{"name": "rain", "arguments": {"city": "Bern"}}]']
)
def test_references_may_be_a_list_or_its_text_without_placeholders(calls: Any):
    assert load_references(calls) == [Reference("rain", {"city": "Bern"})]


@pytest.mark.parametrize(
    ("doc", "found"),
    [
        ({"question": "rain?"}, "`calls`, .*item has question"),
        ({"calls": "rain"}, "`calls` is not JSON"),
        ({"calls": "3"}, "`calls` holds int"),
        ({"calls": '[{"tool": "rain"}]'}, "`name` and `arguments`"),
        ({"calls": ["rain"]}, "`name` and `arguments`"),
    ],
)
def test_calls_of_a_different_form_are_refused_in_one_sentence_that_shows_the_form(doc: dict[str, Any], found: str):
    with pytest.raises(TaskError, match=found) as refused:
        process_results(doc, ["x"])
    assert '[{"name": "weather"' in str(refused.value)
