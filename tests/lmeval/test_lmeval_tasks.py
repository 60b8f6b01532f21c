"""One text in training and in evaluation: prompts, references, ids; and task files refused before time is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from tokenizers.processors import TemplateProcessing

from harness.config.base import digest
from harness.config.evaluation import Decoding
from harness.config.models import Chat
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import ModelError, TaskError
from harness.lm.chat import Renderer
from harness.lmeval.checks import check_stage_task, check_test_prompts, check_training_prompts
from harness.lmeval.decoding import settle_generation
from harness.lmeval.documents import item_id
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.lmeval.traps import traps
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from harness.rundir.schema import Session
from harness.rundir.store import RunStore
from tests.support.models import DOCS, TASK_FILE, byte_renderer, micro_suite, write_task, write_yaml
from tests.support.reports.records import manifest_of

# Without it lm-eval indexes its thousands of built-in tasks, once for each call.
MANAGER = TaskLibrary().manager


class Listener(LM):
    """An lm-eval model that answers nothing and remembers what it was sent."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__()
        self.renderer = renderer
        self.requests: list[Any] = []

    @property
    def tokenizer_name(self) -> str:
        return "bytes"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "chatml"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.renderer.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.requests += requests
        return [""] * len(requests)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def plain_renderer() -> Renderer:
    """Return the renderer of a base model: no chat template."""
    return Renderer(byte_tokenizer(), Chat())


def sent_by_lm_eval(task: Task, renderer: Renderer, limit: int = 5) -> list[str]:
    """Return the prompts that lm-eval sends to a model, in the documents' order."""
    listener = Listener(renderer)
    simple_evaluate(
        model=listener,
        tasks=[task.lmeval],
        task_manager=MANAGER,
        limit=limit,
        apply_chat_template=renderer.has_template,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,
    )
    return [request.args[0] for request in sorted(listener.requests, key=lambda request: request.doc_id)]


def made_up(folder: Path, **changes: Any) -> Task:
    """Return a task written for one test."""
    write_task(folder, **changes)
    return TaskLibrary([folder]).load("made_up")


PROMPT_STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "described": {"description": "Answer at once.\n\n"},
    "few-shot": {"num_fewshot": 2, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}},
    "begun": {"gen_prefix": "The answer is"},
    "delimited": {"target_delimiter": " "},
}


@pytest.mark.parametrize("renderer", [byte_renderer, plain_renderer], ids=["chat", "base"])
@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_training_prompt_is_the_text_that_lm_eval_sends_for_the_same_document(
    style: str, renderer: Any, tmp_path: Path
):
    same = {"train": DOCS["test"], "test": DOCS["test"]}
    task = made_up(tmp_path, docs=same, **PROMPT_STYLES[style])
    render = renderer()
    sent = sent_by_lm_eval(task, render)
    assert [task.render(doc, render) for doc in task.test_docs(5)] == sent
    examples = task.training_examples(render, 5)
    assert [example.prompt for example in examples] == [render.encode_prompt(text) for text in sent]
    assert task.training_prompts(render, 5) == sent
    assert render.longest_prompt(sent) == max(len(example.prompt) for example in examples)
    assert all("say" in text for text in sent)


@pytest.mark.parametrize("name", ["tiny_weather", "tiny_arithmetic"])
def test_shipped_tasks_render_what_lm_eval_sends(name: str, library: TaskLibrary):
    task, renderer = library.load(name), byte_renderer()
    sent = sent_by_lm_eval(task, renderer)
    assert [task.render(doc, renderer) for doc in task.test_docs(5)] == sent
    assert sent[0] == f"<|im_start|>user\n{task.test_docs(1)[0]['prompt']}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.pitfall(
    "a target without its stop token teaches a model never to stop",
    area="lm-eval",
    guard="`harness/lm/chat.py` ends every target with the first stop token",
    evidence="only the target's text is supervised",
)
def test_the_supervised_ids_are_the_reference_and_the_stop_token(library: TaskLibrary):
    renderer = byte_renderer()
    example = library.load("tiny_weather").training_examples(renderer, 1)[0]
    assert renderer.tokenizer.decode(example.target) == example.doc["target"] + "<|im_end|>"
    assert example.target[-1] == renderer.stop_ids[0]
    assert renderer.tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n")


@pytest.mark.pitfall(
    "lm-eval puts target_delimiter before a target, so a base model trained without it learns other tokens than "
    "the evaluation expects",
    area="lm-eval",
    guard="`harness/lmeval/task.py` puts the delimiter before plain-text targets",
    evidence="the delimiter is left out",
)
def test_a_base_models_target_has_the_delimiter_that_lm_eval_puts_before_it(tmp_path: Path):
    task = made_up(tmp_path, target_delimiter=" ")
    plain, chat = plain_renderer(), byte_renderer()
    assert plain.tokenizer.decode(task.training_examples(plain, 1)[0].target) == " 20<|im_end|>"
    assert chat.tokenizer.decode(task.training_examples(chat, 1)[0].target) == "20<|im_end|>"


def with_bos(chat: Chat) -> Renderer:
    """Return a renderer whose tokenizer puts a BOS before what it encodes, as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    number = tokenizer.convert_tokens_to_ids("<s>")
    processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    tokenizer.backend_tokenizer.post_processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    return Renderer(tokenizer, chat)


@pytest.mark.pitfall(
    "a template writes a BOS token and the tokenizer adds a second one, which has changed published scores",
    area="lm-eval",
    guard="`harness/lm/chat.py` adds no special tokens to templated text, and engines get token ids, never text",
    evidence="special tokens are always added",
)
def test_bos_is_never_doubled(tmp_path: Path):
    template = tmp_path / "bos.jinja"
    template.write_text("<s>{% for m in messages %}{{ m.content }}{% endfor %}")
    task = made_up(tmp_path / "task")
    for renderer in (with_bos(Chat(template=str(template))), with_bos(Chat())):
        bos = renderer.tokenizer.convert_tokens_to_ids("<s>")
        example = task.training_examples(renderer, 1)[0]
        assert example.prompt.count(bos) == 1
        assert example.prompt[0] == bos
        assert bos not in example.target


def test_the_thinking_flag_reaches_the_template_in_training_and_evaluation(tmp_path: Path):
    template = tmp_path / "thinking.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<no thinking>{% endif %}"
    )
    task = made_up(tmp_path / "task")
    expected = {None: "say 0", True: "say 0", False: "say 0<no thinking>"}
    for flag, text in expected.items():
        renderer = byte_renderer(Chat(template=str(template), enable_thinking=flag))
        assert sent_by_lm_eval(task, renderer, 1) == [text]
        assert task.render(DOCS["test"][0], renderer) == text


def test_a_conversation_that_ends_with_an_answer_begun_is_continued():
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}]
    assert byte_renderer().render(messages, add_generation_prompt=False).endswith("<|im_start|>assistant\nIt is")


@pytest.mark.pitfall(
    "the eos token of a base model is often not the token that ends a turn in its chat template",
    area="lm-eval",
    guard="`harness/lm/chat.py` stops at the tokens that the suite names",
    evidence="generation always stops at the tokenizer's eos",
)
def test_stop_tokens_are_the_named_ones_or_eos():
    vocabulary = byte_tokenizer().get_vocab()
    assert byte_renderer().stop_ids == (vocabulary["<|im_end|>"],)
    named = byte_renderer(Chat(template="chatml", stop=("<|endoftext|>", "<|im_end|>")))
    assert named.stop_ids == (vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"])
    assert named.encode_target("x")[-1] == vocabulary["<|endoftext|>"]


def test_unusable_chat_settings_are_refused():
    with pytest.raises(ModelError, match="'chatmll' was not found; "):
        byte_renderer(Chat(template="chatmll"))
    with pytest.raises(ModelError, match=r"chat.stop names \['<end>'\], which are not single tokens"):
        byte_renderer(Chat(stop=("<end>",)))
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match=r"has no eos token; name the stop tokens under `chat.stop`"):
        Renderer(endless, Chat())


def test_item_ids_are_the_hashes_that_lm_eval_logs(tmp_path: Path):
    task = made_up(tmp_path)
    listener = Listener(plain_renderer())
    results: Any = simple_evaluate(model=listener, tasks=[task.lmeval], task_manager=MANAGER, bootstrap_iters=0)
    logged = [sample["doc_hash"] for sample in results["samples"]["made_up"]]
    assert [item_id(doc) for doc in task.test_docs()] == logged
    assert len(set(logged)) == len(logged)


def test_grading_goes_through_the_tasks_own_filter_and_grader(tmp_path: Path):
    upper = [{"name": "first", "filter": [{"function": "uppercase"}, {"function": "take_first"}]}]
    task = made_up(tmp_path, docs={"train": [{"prompt": "a", "target": "A"}]} | {"test": DOCS["test"]})
    shouted = made_up(tmp_path / "upper", filter_list=upper)
    assert task.grade({"prompt": "", "target": "A"}, " A ") == {"strict": 1.0, "parsed": 1.0}
    assert task.grade({"prompt": "", "target": "A"}, "a?") == {"strict": 0.0, "parsed": 0.0}
    assert shouted.grade({"prompt": "", "target": "A"}, "a") == {"strict": 1.0, "parsed": 1.0}


TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "a field": ({"training_target": "worked"}, "1+1=2"),
    "a template": ({"training_target": "{{worked}}!"}, "1+1=2!"),
}


@pytest.mark.pitfall(
    "doc_to_target may be the bare answer although a model should learn the worked solution",
    area="lm-eval",
    guard="`harness/lmeval/task.py` reads `metadata.harness.training_target`",
    evidence="the key is not read",
)
@pytest.mark.parametrize("kind", TARGETS)
def test_worked_solutions_can_be_the_training_target(kind: str, tmp_path: Path):
    harness, expected = TARGETS[kind]
    doc = {"prompt": "1+1", "target": "2", "worked": "1+1=2"}
    task = made_up(tmp_path, docs={"train": [doc], "test": [doc]}, metadata={"version": 1.0, "harness": harness})
    assert task.training_target(task.training_docs()[0]) == expected


@pytest.mark.pitfall(
    "doc_to_target may be a list of answers or the index of a choice",
    area="lm-eval",
    guard="`harness/lmeval/task.py` trains on the first answer, or on the text of the choice",
    evidence="training uses the index itself",
)
def test_without_one_the_target_is_doc_to_target_or_the_choice_it_points_to(tmp_path: Path):
    bare = {"version": 1.0}
    doc = {"prompt": "1+1", "target": "2", "answers": ["two", "2"], "label": 1}
    docs = {"train": [doc], "test": [doc]}
    text = made_up(tmp_path / "text", docs=docs, metadata=bare)
    several = made_up(tmp_path / "list", docs=docs, metadata=bare, doc_to_target="answers")
    choice = made_up(
        tmp_path / "choice", docs=docs, metadata=bare, doc_to_target="label", doc_to_choice="answers", grader=None,
        output_type="multiple_choice", generation_kwargs=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    assert text.training_target(text.training_docs()[0]) == "2"
    assert several.training_target(several.training_docs()[0]) == "two"
    assert choice.training_target(choice.training_docs()[0]) == "2"
    assert (text.metric, choice.metric) == ("strict", "acc")


def test_only_generating_tasks_with_training_items_can_be_stages(tmp_path: Path):
    check_stage_task(made_up(tmp_path / "good"))
    with pytest.raises(TaskError, match="task made_up has no `training_split`; a stage and a warm-up need one"):
        check_stage_task(made_up(tmp_path / "untrained", training_split=None))
    doc = {"prompt": "1+1", "target": "2", "answers": ["1", "2"], "label": 1}
    choice = made_up(
        tmp_path / "choice", docs={"train": [doc], "test": [doc]}, output_type="multiple_choice", doc_to_target="label",
        doc_to_choice="answers", generation_kwargs=None, grader=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        metadata={"version": 1.0},
    )  # fmt: skip
    with pytest.raises(TaskError, match="task made_up is multiple_choice; a stage needs generate_until"):
        check_stage_task(choice)
    settle_generation(choice, Decoding())


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run directory as far as its manifest."""
    folder = tmp_path / "runs" / "seed0"
    RunStore(folder).path.mkdir(parents=True)
    RunStore(folder).start(manifest_of(config={}, config_hash=digest({})), Session())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(TaskError) as error:
        TaskLibrary([folder])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_name(library: TaskLibrary):
    with pytest.raises(TaskError) as error:
        library.load("tiny_wether")
    assert str(error.value).startswith("there is no task 'tiny_wether' in ")
    assert "did you mean tiny_weather" in str(error.value)


def test_a_built_in_task_of_lm_eval_can_be_named(library: TaskLibrary):
    assert "hellaswag" not in library.names()
    assert "hellaswag" in library._manager_of("hellaswag").all_subtasks


@pytest.mark.pitfall(
    "lm-eval skips a YAML file that does not parse and then reports its task as unknown",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` parses every file first, and errors name file and line",
    evidence="files are not parsed first",
)
def test_broken_yaml_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text("task: broken\noutput_type: generate_until\ndoc_to_text: [prompt\nmetadata: 1\n")
    assert refusal(tmp_path).startswith(f"{path} line 4: not valid YAML")


@pytest.mark.pitfall(
    "lm-eval skips a task file whose `include` does not exist and then reports its task as unknown",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` follows includes when it parses the files",
    evidence="a missing include is ignored",
)
def test_a_missing_include_is_named(tmp_path: Path):
    path = tmp_path / "lonely.yaml"
    path.write_text("include: _common\ntask: lonely\n")
    found = refusal(tmp_path)
    assert str(path) in found
    assert "_common" in found


@pytest.mark.pitfall(
    "lm-eval ignores files that end in .yml",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses such a file and gives the name that it needs",
    evidence=".yml files are not looked for",
)
def test_a_yml_file_which_lm_eval_would_skip_is_refused(tmp_path: Path):
    path = tmp_path / "short.yml"
    path.write_text("task: short\n")
    assert refusal(tmp_path) == f"{path}: lm-eval reads only files that end in .yaml; rename it to short.yaml"


def test_a_yaml_that_is_no_mapping_is_named(tmp_path: Path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    assert str(path) in refusal(tmp_path)


@pytest.mark.pitfall(
    "lm-eval accepts a task folder that does not exist",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses it",
    evidence="a missing folder is ignored",
)
def test_a_missing_folder_is_refused(tmp_path: Path):
    assert refusal(tmp_path / "nowhere").startswith(f"task folder {tmp_path / 'nowhere'} does not exist")


def test_records_that_cannot_be_read_are_one_sentence_with_the_task(tmp_path: Path):
    write_task(tmp_path)
    (tmp_path / "made_up_code.py").write_text(
        "def records(**_):\n    raise OSError('disk on fire')\ndef grade(*_): ...\n"
    )
    with pytest.raises(TaskError, match="task made_up: OSError while loading it: disk on fire"):
        TaskLibrary([tmp_path]).load("made_up")


@pytest.mark.pitfall(
    "data sets that are Python scripts do not load any more, and the error does not say what to do",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` says it in one sentence",
    evidence="the user sees the library's own error",
)
def test_a_data_set_that_is_a_script_is_one_sentence_that_says_what_to_do(tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise RuntimeError('executed')")
    write_yaml(tmp_path / "made_up.yaml", {"task": "made_up", **TASK_FILE, "dataset_path": str(tmp_path / "old")})
    with pytest.raises(TaskError, match=r"its data set .*old is a Python script, .*JSON or Parquet.*custom_dataset"):
        TaskLibrary([tmp_path]).load("made_up")


@pytest.mark.pitfall(
    "`!function` runs code that lies in the task's folder, so reading all files of a folder would run all of it",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` leaves functions as text when it checks files",
    evidence="functions are loaded",
)
def test_checking_files_executes_nothing(tmp_path: Path):
    write_task(tmp_path)
    (tmp_path / "made_up_code.py").write_text("raise SystemExit('executed')")
    TaskLibrary([tmp_path])


@pytest.mark.pitfall(
    "a task file in a run directory, perhaps someone else's, would be executed",
    area="lm-eval",
    guard="`harness/lmeval/task_files.py` refuses task files inside a run directory, and URLs",
    evidence="the refusal is removed",
)
def test_task_files_are_not_taken_from_a_run_directory_or_a_url(run_directory: Path):
    write_task(run_directory / "stage_0")
    for folder in (run_directory.parent, run_directory, run_directory / "stage_0"):
        assert refusal(folder).startswith(f"{run_directory / 'stage_0/made_up.yaml'} lies in the run directory")
    assert "does not exist" in refusal(Path("https://example.org/tasks"))


COMPLETE = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8}


@pytest.mark.pitfall(
    "without do_sample and temperature, lm-eval decodes greedily with hf and samples at 1.0 with vLLM",
    area="lm-eval",
    guard="`harness/lmeval/decoding.py` refuses a task or suite that sets no temperature",
    evidence="temperature is not required",
)
@pytest.mark.pitfall(
    "without `until`, an answer ends at lm-eval's default, which differs between its model classes",
    area="lm-eval",
    guard="`harness/lmeval/decoding.py` refuses a task or suite that sets no `until`",
    evidence="`until` is not required",
)
@pytest.mark.pitfall(
    "without a budget, lm-eval generates 256 tokens, too few for an answer with reasoning",
    area="lm-eval",
    guard="`harness/lmeval/decoding.py` requires max_gen_toks",
    evidence="max_gen_toks is not required",
)
@pytest.mark.parametrize("missing", ["until", "temperature", "max_gen_toks"])
def test_a_task_without_a_setting_that_decides_answers_is_refused_unless_the_suite_gives_it(
    missing: str, tmp_path: Path
):
    incomplete = {key: value for key, value in COMPLETE.items() if key != missing}
    task = made_up(tmp_path, generation_kwargs=incomplete)
    with pytest.raises(TaskError) as error:
        settle_generation(task, Decoding())
    assert f"{tmp_path / 'made_up.yaml'}: generation_kwargs lack {missing};" in str(error.value)
    assert "`evaluation.decoding`" in str(error.value)
    assert any(f"lack {missing}" in trap for trap in traps(task))
    given = {"until": ("END",), "temperature": 0.5, "max_gen_toks": 31}[missing]
    settle_generation(task, Decoding.model_validate({missing: given}))
    assert task.generation[missing] == (["END"] if missing == "until" else given)


@pytest.mark.pitfall(
    "a mapping of overrides replaces all of a task's generation settings",
    area="lm-eval",
    guard="`harness/lmeval/decoding.py` merges the overrides into the loaded task",
    evidence="set_config is called without update",
)
def test_a_suites_decoding_replaces_only_what_it_names(tmp_path: Path):
    task = made_up(tmp_path)
    settle_generation(task, Decoding(max_gen_toks=31))
    assert {key: task.generation[key] for key in COMPLETE} == {**COMPLETE, "max_gen_toks": 31}


def test_prompts_that_do_not_fit_the_context_are_refused_with_the_numbers(tmp_path: Path):
    write_task(tmp_path)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    # the longest test prompt: "<|im_start|>user\nsay 0<|im_end|>\n<|im_start|>assistant\n" is 1+5+5+1+1+1+10 = 24 tokens
    check_test_prompts([task], renderer, 24 + 8, None)
    with pytest.raises(TaskError) as error:
        check_test_prompts([task], renderer, 24 + 7, None)
    assert str(error.value) == (
        "task made_up: its longest test prompt has 24 tokens and an answer may take 8, more than the model's context of "
        "31; lower the answer budget or take a model with more context"
    )


def test_training_prompts_are_checked_with_the_budget_of_their_stage_and_adapter(tmp_path: Path):
    write_task(tmp_path)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    raw = micro_suite()
    raw["training"]["max_new_tokens"] = 8
    raw["stages"] = [{"task": "made_up", "training": raw["training"]}]
    raw["adapters"] = {"opd": {}, "long": {"adapter": "opd", "training": {"max_new_tokens": 40}}}
    suite = Suite.model_validate(raw)

    def longest(task: Task, limit: int | None, room: int) -> int:
        return renderer.longest_prompt(task.training_prompts(renderer, limit), room)

    # the longest training prompt "say 20" has 25 tokens
    check_training_prompts(RunSpec(suite, "opd", 0), {"made_up": task}, 33, longest)
    with pytest.raises(TaskError, match="its longest training prompt has 25 tokens and an answer may take 40"):
        check_training_prompts(RunSpec(suite, "long", 0), {"made_up": task}, 33, longest)
    with pytest.raises(TaskError, match="its longest training prompt has 25 tokens and an answer may take 8"):
        check_training_prompts(RunSpec(suite, "opd", 0), {"made_up": task}, 32, longest)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_text_in_place_of_the_question_keeps_all_else_of_the_prompt(chat: bool, tmp_path: Path):
    examples = {"num_fewshot": 2, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    write_task(tmp_path, description="You repeat.", gen_prefix="So it is", **examples)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    if not chat:
        renderer.tokenizer.chat_template = None
    doc = task.training_docs(4)[3]
    prompt = task.render(doc, renderer)
    assert task.render_question(doc, task.prompt_text(doc), renderer) == prompt
    assert task.render_question(doc, "other {{ text }}", renderer) == prompt.replace("say 23", "other {{ text }}")
    assert task.render(doc, renderer) == prompt
