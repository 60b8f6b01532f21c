"""Task files, records and tokenizers that lm-eval misreads or stops at: as lm-eval has them, or one sentence before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.config.evaluation import Decoding
from harness.config.load import load_suite
from harness.config.models import Chat
from harness.config.suite import Suite
from harness.errors import ModelError, TaskError
from harness.evaluation.answering import Answer
from harness.evaluation.cell_cache import CellResult
from harness.evaluation.groups import group_cell, load_evaluation_plan
from harness.evaluation.keys import Keys
from harness.evaluation.scoring import sample_rows, summary_of
from harness.lm.chat import Renderer
from harness.lmeval.generation_settings import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.lmeval.trial import item_warnings, try_task
from tests.support.lmeval import Listener, plain_renderer
from tests.support.models import byte_renderer, micro_suite, write_yaml

ROWS = [{"q": f"how much is {i} and {i + 1}?", "a": str(2 * i + 1), "n": 2 * i + 1} for i in range(24)]
GREEDY = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12}
ACTS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
)


def write(folder: Path, name: str = "sums", train: Any = ROWS, test: Any = ROWS[:8], **changes: Any) -> Path:
    """Write a task over JSON lines; a split of None is left out, a change to None drops a key."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: rows for split, rows in (("train", train), ("test", test)) if rows is not None}
    for split, rows in files.items():
        (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(folder / f"{name}_{split}.jsonl") for split in files}},
        "training_split": "train" if train is not None else None,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_target": "{{a}}",
        "generation_kwargs": GREEDY,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
        **changes,
    }
    return write_yaml(folder / f"{name}.yaml", {key: value for key, value in config.items() if value is not None})


def loaded(folder: Path, name: str = "sums", **changes: Any) -> Task:
    write(folder, name, **changes)
    return TaskLibrary([folder]).load(name)


def refusal(folder: Path, **changes: Any) -> str:
    """Return the sentence with which a task is refused when it is loaded or tried."""
    with pytest.raises(TaskError) as refused:
        try_task(loaded(folder, **changes), byte_renderer())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def with_probe(folder: Path, probe: str) -> Suite:
    """Return the micro suite with another probe; its file is in a separate folder."""
    return load_suite(str(write_yaml(folder / "suites" / "micro.yaml", {**micro_suite(), "probes": [probe]})))


def tokenizer(after: str = "", template: str = "", prepend: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte tokenizer with `<bos>` and `<stop>`, a post-processor, a template, and a first space."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()  # pyright: ignore
    if prepend:
        made.normalizer = normalizers.Prepend(" ")  # pyright: ignore[reportAttributeAccessIssue]
    specials = ["<bos>", "<stop>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    if after:
        used = [(token, made.token_to_id(token)) for token in specials if token in after]
        made.post_processor = processors.TemplateProcessing(single=after, special_tokens=used)  # pyright: ignore
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<stop>", pad_token="<stop>")
    if template:
        wrapped.chat_template = template
    return wrapped


def test_a_groups_own_filter_makes_its_score_as_in_bare_lm_eval(tmp_path: Path):
    def regex(name: str, **fallback: str) -> dict[str, Any]:
        parts = [{"function": "regex", "regex_pattern": "The sum is ([0-9]+)@", **fallback}, {"function": "take_first"}]
        return {"name": name, "filter": parts}

    filters = [regex("strict-match"), regex("flexible-extract", fallback="7")]
    for name in ("loose_a", "loose_b"):
        write(tmp_path, name, doc_to_target="7", filter_list=filters)
    metric = {"metric": "exact_match", "aggregation": "mean", "weight_by_size": True, "filter_list": "flexible-extract"}
    group = {
        "group": "loose",
        "task": ["loose_a", "loose_b"],
        "aggregate_metric_list": [metric],
        "metadata": {"version": 1},
    }
    write_yaml(tmp_path / "loose.yaml", group)
    library = TaskLibrary([tmp_path])
    plain = library.load("loose_a")
    plan = load_evaluation_plan(library, with_probe(tmp_path, "loose"))
    listener: Any = Listener(plain_renderer())
    results: Any = simple_evaluate(model=listener, tasks=["loose"], task_manager=library.manager, bootstrap_iters=0)
    assert results["results"]["loose"]["exact_match,flexible-extract"] == 1

    cells: dict[str, CellResult] = {}
    for name in ("loose_a", "loose_b"):
        task = plan.cells[name]
        assert (task.filter_name, plain.filter_name) == ("flexible-extract", "strict-match")
        answers = {(name, i): [Answer("", "stop", 0)] for i in range(8)}
        samples = sample_rows(task, results["samples"][name], answers)
        keys = Keys(generation="g", grading="r", comparability="c")
        summary = {"seconds": 0.0, "weights": "w", "seed": 0, "keys": keys}
        cells[name] = CellResult(summary_of(name, task.metric, samples).model_copy(update=summary), samples)
    assert group_cell(plan.groups["loose"], cells).summary.score == 1


def test_a_group_that_averages_a_filter_which_its_task_lacks_is_refused(tmp_path: Path):
    write(tmp_path, "plain")
    metric = {"metric": "exact_match", "filter_list": "flexible-extract"}
    write_yaml(tmp_path / "group.yaml", {"group": "group", "task": ["plain"], "aggregate_metric_list": [metric]})
    suite = with_probe(tmp_path, "group")
    with pytest.raises(TaskError, match=r"filter 'flexible-extract', .*task plain\b"):
        load_evaluation_plan(TaskLibrary([tmp_path]), suite)


@pytest.mark.parametrize("template", ["", ACTS, "{{ bos_token }}" + ACTS])
def test_prompts_begin_with_the_bos_that_bare_lm_eval_puts_there_once(template: str):
    made = tokenizer("<bos> $A", template)
    renderer = Renderer(made, Chat())
    text = renderer.render([{"role": "user", "content": "hi"}]) if template else "hi"
    ids = renderer.encode_prompt(text)
    # lm-eval's HFLM leaves special tokens to the tokenizer, unless the text begins with the BOS.
    assert ids == made.encode(text, add_special_tokens=not text.startswith("<bos>"))
    assert made.convert_ids_to_tokens(ids).count("<bos>") == 1


def test_a_tokenizer_that_ends_every_prompt_is_refused():
    with pytest.raises(ModelError, match=r"<stop> at the end .*add_eos_token"):
        Renderer(tokenizer("<bos> $A <stop>"), Chat())


def test_after_a_begun_answer_the_target_has_the_space_of_lm_evals_own_examples(tmp_path: Path):
    renderer = Renderer(tokenizer("<bos> $A", ACTS), Chat())
    example = loaded(tmp_path, gen_prefix="So it is").training_examples(renderer)[0]
    text = renderer.tokenizer.decode(example.prompt + example.target)
    assert text.endswith("So it is 1<stop>")


@pytest.mark.parametrize(("delimiter", "expected"), [(" ", "Answer: 1<stop>"), ("", "Answer:1<stop>")])
def test_a_tokenizer_that_puts_a_space_before_every_text_puts_none_before_a_target(
    tmp_path: Path, delimiter: str, expected: str
):
    renderer = Renderer(tokenizer(prepend=True), Chat())
    example = loaded(tmp_path, target_delimiter=delimiter).training_examples(renderer)[0]
    assert renderer.tokenizer.decode(example.prompt + example.target).endswith(expected)


def test_a_template_that_refuses_a_description_is_one_sentence_with_the_task(tmp_path: Path):
    task = loaded(tmp_path, description="You add numbers.")
    with pytest.raises(ModelError, match=r"task sums: .*chat template refuses .*system, user .no system.*description"):
        try_task(task, Renderer(tokenizer(template=NO_SYSTEM), Chat()))


def test_code_that_a_model_wrote_is_never_run(tmp_path: Path):
    sentence = refusal(tmp_path, unsafe_code=True)
    assert "unsafe_code" in sentence
    assert "--confirm_run_unsafe_code" in sentence


METRIC = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"metadata": [1]}, "metadata is [1]"),
        ({"metadata": {"version": 1, "harnes": {"metric": "exact_match"}}}, "'harnes'"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"num_fewshot": True}, "num_fewshot is True"),
        ({"repeats": 0}, "repeats is 0"),
        ({"metric_list": ["exact_match"]}, "metric_list is ['exact_match']"),
        ({"metric_list": [{**METRIC, "higher_is_better": "no"}]}, "higher_is_better is 'no'"),
        ({"metric_list": [{**METRIC, "agregation": "mean"}]}, "'agregation'"),
        ({"output_type": "multiple_choice"}, "doc_to_choice is missing"),
    ],
)
def test_a_value_of_a_task_that_lm_eval_misreads_is_refused(tmp_path: Path, changes: Any, found: str):
    assert found in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("until", value) for value in (None, 7, {"a": 1}, [1])],
        *[("do_sample", value) for value in ("no", 3)],
        *[("temperature", value) for value in (float("inf"), -1)],
        *[("top_p", value) for value in (7, "x", 0)],
        *[("top_k", value) for value in (-5, "x")],
        *[("max_gen_toks", value) for value in (True, 1.5)],
        ("n", "x"),
        (7, 1),
    ],
)
def test_generation_settings_of_a_wrong_type_or_range_are_refused(tmp_path: Path, key: Any, value: Any):
    task = loaded(tmp_path, generation_kwargs={**GREEDY, key: value})
    with pytest.raises(TaskError, match=rf"generation_kwargs.*{key}"):
        settle_generation(task, Decoding())


def test_an_integer_target_is_its_digits_as_lm_eval_casts_it(tmp_path: Path):
    task = loaded(tmp_path, doc_to_target="n")
    assert task.training_target(task.training_docs(1)[0]) == "1"
    assert try_task(task, byte_renderer())["training"].reference == 1


@pytest.mark.parametrize(
    ("metric", "returned", "found"),
    [
        ("points", "37.5", "gave 37.5 for 'points'"),
        ("points", "None", "gave None for 'points'"),
        ("points", "'good'", "gave 'good' for 'points'"),
        ("points", "(1, 'x')", r"gave (1, 'x') for 'points'"),
        ("points", "doc['calls']", "(KeyError: 'calls'); the item has the fields q, a, n"),
    ],
)
def test_a_metric_that_cannot_be_a_score_is_refused_before_anything_runs(
    tmp_path: Path, metric: str, returned: str, found: str
):
    write(tmp_path, metric_list=[{"metric": metric, "aggregation": "mean", "higher_is_better": True}])
    (tmp_path / "grade.py").write_text(f"def grade(doc, results):\n    return {{'points': {returned}}}\n")
    with (tmp_path / "sums.yaml").open("a") as file:
        file.write("process_results: !function grade.grade\n")
    with pytest.raises(TaskError) as refused:
        try_task(TaskLibrary([tmp_path]).load("sums"), byte_renderer())
    assert found in str(refused.value)
    assert "from 0 to 1" in str(refused.value)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ("strict", "metadata.harness is 'strict', expected a mapping"),
        (3.5, "metadata.harness is 3.5, expected a mapping"),
        ([None], "metadata.harness is [None], expected a mapping"),
        ({"metric": ["strict"]}, "metadata.harness: metric: found ['strict']"),
        ({"training_target": 7}, "metadata.harness: training_target: found 7"),
        ({"clusters": "topic"}, "metadata.harness: clusters: unknown key; did you mean 'cluster'?"),
    ],
)
def test_what_only_the_harness_reads_of_a_task_is_a_mapping_of_known_keys(tmp_path: Path, found: Any, sentence: str):
    assert sentence in refusal(tmp_path, metadata={"version": 1.0, "harness": found})


def test_a_metric_without_a_value_for_one_item_is_refused_and_another_named(tmp_path: Path):
    bleu = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    named = {"metadata": {"version": 1.0, "harness": {"metric": "bleu"}}}
    assert "write a process_results" in refusal(tmp_path / "alone", metric_list=[bleu], **named)
    assert "name exact_match in metadata" in refusal(tmp_path / "both", metric_list=[bleu, exact], **named)


def test_a_likelihood_task_whose_metric_has_no_value_for_one_item_is_refused(tmp_path: Path):
    choices = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["1", "3"],
        "doc_to_target": 0,
        "generation_kwargs": None,
    }
    mcc = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    assert "for 'mcc' of one item" in refusal(tmp_path / "mcc", metric_list=mcc, **choices)
    acc = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    assert try_task(loaded(tmp_path / "acc", metric_list=acc, **choices), byte_renderer()) == {}


def test_examples_that_show_an_items_own_answer_are_counted(tmp_path: Path):
    first = {"num_fewshot": 3, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    task = loaded(tmp_path / "first", test=ROWS[12:20], train=ROWS[:12], **first)
    (warning,) = (found for found in item_warnings(task) if "own answer" in found)
    assert warning.startswith("3 of the first 12 training prompts")
    alone = loaded(tmp_path / "alone", train=None, num_fewshot=3)
    asked = alone.asked(alone.test_docs(), plain_renderer())
    shown = [text.count(f"{doc['q']}\nAnswer: ") for doc, text in zip(ROWS, asked, strict=False)]
    assert sum(shown) > 0
    assert any(found.startswith(f"{sum(shown)} of the first 8 test prompts") for found in item_warnings(alone))


def test_other_names_of_the_budget_and_one_beam_are_what_lm_eval_makes_of_them(tmp_path: Path):
    settings = {**GREEDY, "max_gen_toks": None, "max_new_tokens": 9, "num_beams": 1}
    task = loaded(tmp_path, generation_kwargs={name: value for name, value in settings.items() if value is not None})
    settle_generation(task, Decoding())
    assert task.generation["max_gen_toks"] == 9
    assert not {"max_new_tokens", "num_beams"} & set(task.generation)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"num_beams": 4}, "generation_kwargs num_beams"),
        ({"repetition_penalty": 1.1}, "generation_kwargs repetition_penalty"),
        ({"max_gen_toks": [1]}, r"max_gen_toks is \[1\], .*above 0"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 or more"),
        ({"until": [""]}, r"until is \[''\], .*none empty"),
    ],
)
def test_generation_settings_that_no_engine_has_are_refused_before_anything_runs(
    tmp_path: Path, changed: dict[str, Any], found: str
):
    task = loaded(tmp_path, generation_kwargs={**GREEDY, **changed})
    with pytest.raises(TaskError, match=found):
        settle_generation(task, Decoding())


FIELD = {"doc_to_text": "q"}
NULL = [*ROWS[:3], {**ROWS[3], "q": None}, *ROWS[4:6]]
LACKING = [{name: value for name, value in row.items() if name != "q"} for row in ROWS[:6]]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({**FIELD, "test": LACKING}, ["sums.yaml", "doc_to_text", "'q'", "row 0", "split test"]),
        ({**FIELD, "train": LACKING}, ["task sums", "q: string", "column names", "same fields"]),
        ({"train": None, "test": LACKING, **FIELD}, ["sums.yaml", "doc_to_text", "'q'", "split test", "a, n"]),
        ({**FIELD, "test": NULL}, ["doc_to_text", "'q'", "row 3", "split test", "null"]),
        ({**FIELD, "train": NULL}, ["doc_to_text", "'q'", "row 3", "split train", "null"]),
        ({**FIELD, "test": [LACKING[0], *ROWS[1:6]]}, ["doc_to_text", "'q'"]),
        ({"test": NULL}, ["doc_to_text", "'q'", "row 3", "split test"]),
        ({"doc_to_target": "answer"}, ["doc_to_target", "'answer'", "q, a, n"]),
        ({"doc_to_text": "{{question}}"}, ["question", "q, a, n", "train (24 rows", "test (8 rows"]),
        ({"test_split": "dev"}, ["'dev'", "train (24 rows", "test (8 rows"]),
        (
            {"metadata": {"version": 1, "harness": {"cluster": "topic"}}},
            ["metadata.harness.cluster", "'topic'", "q, a, n"],
        ),
    ],
)
def test_records_without_what_a_file_names_are_one_sentence_with_field_row_and_what_exists(
    tmp_path: Path, changes: dict[str, Any], parts: list[str]
):
    with pytest.raises(TaskError) as refused:
        loaded(tmp_path, **changes)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_a_field_that_a_template_handles_where_it_is_empty_may_be_null(tmp_path: Path):
    rows = [{**row, "hint": None if i % 2 else "add"} for i, row in enumerate(ROWS)]
    text = "{% if hint %}{{hint}}: {% endif %}{{q}}"
    assert loaded(tmp_path, train=rows, test=rows[:4], doc_to_text=text).test_docs(1)


def test_items_that_share_a_target_are_counted_and_a_named_cluster_says_so(tmp_path: Path):
    rows = [{**row, "a": str(i // 4)} for i, row in enumerate(ROWS)]
    (warning,) = item_warnings(loaded(tmp_path / "plain", test=rows))
    assert warning.startswith("24 test items have 6 distinct targets")
    named = loaded(tmp_path / "named", test=rows, metadata={"version": 1, "harness": {"cluster": "a"}})
    assert list(item_warnings(named)) == []


def test_a_loader_that_cannot_reach_its_records_names_the_local_ones_that_it_reads(tmp_path: Path):
    (tmp_path / "loading.py").write_text(
        "def load(**arguments):\n"
        "    data = arguments.get('metadata', {}).get('data', {})\n"
        "    if 'mine' in data:\n"
        "        return data['mine']\n"
        "    raise ConnectionError('cannot reach the hub')\n"
    )
    file = write(tmp_path, dataset_path=None, dataset_kwargs=None)
    file.write_text(file.read_text() + "\ncustom_dataset: !function loading.load\n")
    with pytest.raises(TaskError, match=r"sums: .*hub.*--set data\.mine=FOLDER.*HF_TOKEN"):
        TaskLibrary([str(tmp_path)]).load("sums")
