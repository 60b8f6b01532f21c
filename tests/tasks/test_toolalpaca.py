"""ToolAlpaca's three forms, the placeholder rule and the splits, on made-up files and on the real one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TaskError
from tasks.tools import toolalpaca
from tasks.tools.toolalpaca_records import NotCoveredError, read_records, read_reference
from tasks.tools.toolcalls import Reference, load_references, process_results
from tests.support.task_files import SHARED_DATA, load_task, needs_shared_data

REAL = SHARED_DATA / "toolalpaca" / "eval_simulated.json"
PARTS = ("media", "business", "security")
PERFECT = {"strict": 1.0, "sdft": 1.0, "aopd": 1.0, "parsed": 1.0}

OPENAPI = {
    "paths": {
        "/find": {
            "get": {
                "operationId": "find-pet",
                "parameters": [{"name": "page", "required": False, "schema": {"type": "integer", "default": 1}}],
            }
        },
        "/feed": {
            "post": {
                "operationId": "feedPet",
                "requestBody": {
                    "content": {"application/json": {"schema": {"properties": {"cups": {"default": 2}, "id": {}}}}}
                },
            }
        },
    }
}
API = {
    "Name": "Pets",
    "Category": "Animals",
    "NLDocumentation": 'find-pet: Find a pet.\nParameters: {"name": "Required. string.", "page": "integer."}',
    "Function_Description": {"find-pet": "Find a pet.", "feedPet": "Feed a pet.", "components": ""},
    "Documentation": json.dumps(OPENAPI),
}
SIMULATED = [
    API
    | {
        "Instructions": ["Find Rex.", "Find and feed Rex.", "Feed a pet today.", "Feed Rex if you like."],
        "Golden_Answers": [
            [{"Action": "find-pet", "Action_Input": '{"name": "Rex", "page": 1}'}],
            [
                {"Action": "find-pet", "Action_Input": '{"name": "Rex {the} dog"}'},
                {"Action": "feedPet", "Action_Input": '{"id": ${petId from find-pet}, "note": {"a": ["}"]}}'},
            ],
            [{"Action": "feedPet", "Action_Input": '{"id": 1, "date": ${today}}'}],
            [{"Action": "[Optional]feedPet", "Action_Input": '{"id": 1}'}],
        ],
    }
]
STEP = ["find-pet", '{"name": "Tom"}', "\nThought: find it\nAction: find-pet\nAction Input: ..."]
TRAINING = [
    API
    | {
        "Instances": [
            {
                "input": "Find Tom.\nHint: use find-pet",
                "output": "Tom is here.",
                "Final Thought": "I can answer.",
                "intermediate_steps": [[STEP, "Status Code: 200."], [["feedPet", '{"id": 4}', ""], "fine"]],
            },
            {"input": "Hello?", "output": "Hi.", "Final Thought": "", "intermediate_steps": []},
            {"input": "Find it.", "output": "", "intermediate_steps": [[["find-pet", "not JSON", ""], "error"]]},
        ]
    },
    API | {"Name": "Coins", "Category": "Business", "Instances": [{"input": "x", "intermediate_steps": [[STEP, ""]]}]},
    {"Name": "Empty", "Category": "Business"},
]
ROWS = [
    {
        "prompt": "Tools: ...\nFind Rex.",
        "golden_answer": [{"Action": "find-pet", "Action_Input": '{"name": "Rex"}'}],
        "golden_response": ["Action: find-pet"],
    }
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    written = {}
    for name, content in (("simulated", SIMULATED), ("training", TRAINING), ("rows", ROWS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        written[name] = str(tmp_path / f"{name}.json")
    return written


@pytest.mark.pitfall(
    "ToolAlpaca's golden inputs are not JSON where a value comes from an earlier call",
    area="ToolAlpaca",
    guard="`tasks/tools/toolalpaca_records.py` reads them by a declared rule",
    evidence="only JSON is read",
)
def test_simulated_records_are_read_and_the_uncovered_left_out(files: dict[str, str]):
    records = read_records(files["simulated"])
    assert records.form == "simulated"
    assert [doc["instruction"] for doc in records.docs] == ["Find Rex.", "Find and feed Rex."]
    assert [(item.instruction, item.reason.split(":")[0]) for item in records.left_out] == [
        ("Feed a pet today.", "input is no JSON object"),
        ("Feed Rex if you like.", "[Optional]feedPet is not one of the API's tools"),
    ]
    first, second = records.docs
    assert load_references(first["calls"]) == [Reference("find-pet", {"name": "Rex", "page": 1}, defaults={"page": 1})]
    assert load_references(second["calls"])[1] == Reference(
        "feedPet",
        {"id": "${petId from find-pet}", "note": {"a": ["}"]}},
        frozenset({"id"}),
        {"cups": 2},
    )
    assert second["target"].splitlines()[-1] == 'Action Input: {"id": "${petId from find-pet}", "note": {"a": ["}"]}}'
    assert all(process_results(doc, [doc["target"]]) == PERFECT for doc in records.docs)


def test_a_declared_default_may_be_omitted_and_a_placeholder_filled(files: dict[str, str]):
    first, second = read_records(files["simulated"]).docs
    assert process_results(first, ['Action: find-pet\nAction Input: {"name": "Rex"}'])["strict"] == 1
    assert process_results(first, ['Action: find-pet\nAction Input: {"name": "Rex", "page": 2}'])["strict"] == 0
    filled = second["target"].replace('"${petId from find-pet}"', "4711")
    assert process_results(second, [filled]) == PERFECT


@pytest.mark.pitfall(
    "lm-eval passes no tools to a chat template",
    area="lm-eval",
    guard="`tasks/tools/toolalpaca_records.py` writes tools and schemas into the text of the prompt",
    evidence="the prompt lacks the tools",
)
def test_the_prompt_shows_tools_request_and_format(files: dict[str, str]):
    prompt = read_records(files["simulated"]).docs[0]["prompt"]
    for part in ("getDetails:", API["NLDocumentation"], "Request: Find Rex.", "Action Input:", "${VALUE from TOOL}"):
        assert part in prompt


@pytest.mark.pitfall(
    "ToolAlpaca's training records have a different schema, with calls inside intermediate_steps",
    area="ToolAlpaca",
    guard="`tasks/tools/toolalpaca_records.py` has a loader for it",
    evidence="a step is read without its nested observation",
)
def test_training_apis_are_read_and_instances_without_a_usable_call_left_out(files: dict[str, str]):
    records = read_records(files["training"])
    assert records.form == "apis"
    assert [(doc["api"], doc["instruction"]) for doc in records.docs] == [("Pets", "Find Tom."), ("Coins", "x")]
    assert records.docs[0]["target"] == (
        'Action: find-pet\nAction Input: {"name": "Tom"}\nAction: feedPet\nAction Input: {"id": 4}'
    )
    assert [item.reason for item in records.left_out] == ["no tool call", "input is no JSON object: not JSON"]


@pytest.mark.pitfall(
    "the files that the code of AOPD and SDFT reads have a third schema",
    area="ToolAlpaca",
    guard="`tasks/tools/toolalpaca_records.py` has a loader for it and keeps its prompts",
    evidence="the loader does not know this schema",
)
def test_rows_keep_their_prompt(files: dict[str, str], tmp_path: Path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS))
    for path in (files["rows"], lines):
        records = read_records(path)
        assert (records.form, records.docs[0]["prompt"]) == ("rows", ROWS[0]["prompt"])
        assert process_results(records.docs[0], [records.docs[0]["target"]]) == PERFECT


@pytest.mark.pitfall(
    "a placeholder may name a call that was never made, and accepting it would be a guess",
    area="ToolAlpaca",
    guard="`tasks/tools/toolalpaca_records.py` leaves the item out",
    evidence="any source is accepted",
)
@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ('{"id": ${id from later}}', "names no earlier call"),
        ('{"id": "${id from later}"}', "names no earlier call"),
        ('{"ids": [${id from find}]}', "placeholder without source"),
        ('{"text": "see ${id from find}"}', "placeholder without source"),
        ('{"start": ${start date}}', "no JSON object"),
        ('{"start": "${start date}"}', "placeholder without source"),
        ('{"id": ${id from find, "b": 1}', "no JSON object"),
        ('{"id": 1} and more', "no JSON object"),
        ("[1]", "no JSON object"),
        ("", "no JSON object"),
    ],
)
def test_what_the_placeholder_rule_does_not_cover(golden: str, reason: str):
    with pytest.raises(NotCoveredError, match=reason):
        read_reference("get", golden, ["find"], {})


def test_what_the_placeholder_rule_covers():
    mixed = read_reference("get", '{"a": ${x from find}, "b": "${y from find}", "c": "Pa$$w0rd"}', ["find"], {})
    assert mixed.placeholders == {"a", "b"}
    assert mixed.arguments == {"a": "${x from find}", "b": "${y from find}", "c": "Pa$$w0rd"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds list"),
        ({}, "holds dict"),
        ([{"question": "q"}], r"holds a list of records with \['question'\]"),
        ([{"prompt": ["chat"], "golden_answer": []}], "unlike the form `rows`"),
        ([API | {"Instructions": ["a", "b"], "Golden_Answers": [[]]}], "unlike the form `simulated`"),
        ([API | {"Instances": [{"intermediate_steps": [[]]}]}], "unlike the form `apis`"),
    ],
)
def test_any_other_content_is_refused(content: Any, message: str, tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TaskError, match=message):
        read_records(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(TaskError, match="does not exist"):
        read_records(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(TaskError, match="not valid JSON"):
        read_records(tmp_path / "broken.json")


def test_splits_by_category(files: dict[str, str]):
    data = {"toolalpaca_train": files["training"], "toolalpaca_eval": files["simulated"]}
    everything = load_task("toolalpaca", data=data)
    assert (len(everything.training_docs()), len(everything.test_docs())) == (2, 2)
    media = load_task("toolalpaca_media", data=data)
    assert media.training_docs()["api"] == ["Pets"]
    with pytest.raises(TaskError, match=r"found Animals; .*Business"):
        load_task("toolalpaca_business", data=data)


def test_without_training_records_the_task_only_evaluates(files: dict[str, str]):
    task = load_task("toolalpaca", data={"toolalpaca_eval": files["simulated"]})
    assert len(task.training_docs()) == 0
    assert len(task.test_docs()) == 2


def test_missing_or_unfitting_data_is_refused(files: dict[str, str]):
    with pytest.raises(TaskError, match=r"found no data\.toolalpaca_eval"):
        load_task("toolalpaca")
    with pytest.raises(TaskError, match="only evaluates"):
        toolalpaca.splits(data={"toolalpaca_train": files["simulated"], "toolalpaca_eval": files["simulated"]})
    with pytest.raises(TaskError, match="name no category"):
        toolalpaca.splits(data={"toolalpaca_eval": files["rows"]}, categories=["Animals"])


@pytest.mark.pitfall(
    "leaving items out silently makes a different benchmark",
    area="ToolAlpaca",
    guard="`tasks/tools/toolalpaca.py` logs how many of how many items it leaves out",
    evidence="nothing is logged",
)
def test_what_is_left_out_is_counted_in_the_log(files: dict[str, str], caplog: pytest.LogCaptureFixture):
    toolalpaca.splits(data={"toolalpaca_eval": files["simulated"]})
    assert "left out 2 of 4 items" in caplog.text


@pytest.mark.realdata
@needs_shared_data
def test_real_references_score_one_on_every_covered_item(capsys: pytest.CaptureFixture[str]):
    records = read_records(REAL)
    assert all(process_results(doc, [doc["target"]]) == PERFECT for doc in records.docs)
    with capsys.disabled():
        print(f"\nToolAlpaca: {len(records.docs)} covered, {len(records.left_out)} left out")
    assert (len(records.docs), len(records.left_out)) == (84, 16)
    assert Counter(item.api for item in records.left_out) == {
        "AbuseIPDB": 4, "1Forge": 4, "Auth0": 3, "Apache Superset": 3, "Abstract Public Holidays": 2,
    }  # fmt: skip


@pytest.mark.realdata
@needs_shared_data
def test_real_category_groups_share_out_all_items():
    data = {"toolalpaca_eval": str(REAL)}
    names = [f"toolalpaca_{part}" for part in PARTS]
    groups = [set(load_task(name, data=data).test_docs()["prompt"]) for name in names]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 84


@pytest.mark.realdata
@needs_shared_data
def test_real_smoke_tasks_are_twenty_records_in_both_splits():
    data = {"toolalpaca_eval": str(REAL)}
    whole = load_task("toolalpaca_smoke", data=data)
    parts = [load_task(f"toolalpaca_smoke_{part}", data=data) for part in PARTS]
    assert [len(task.test_docs()) for task in parts] == [7, 7, 6]
    assert [doc for task in parts for doc in task.test_docs()] == whole.test_docs().to_list()
    for task in [whole, *parts]:
        assert task.training_docs().to_list() == task.test_docs().to_list()
        assert task.config.metadata["harness"]["memorise"] is True
