"""One text in training and in evaluation: prompts, stop tokens, ids and grades are those of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from tokenizers.processors import TemplateProcessing

from harness.config.models import Chat
from harness.errors import ModelError
from harness.lm.chat import Renderer
from harness.lmeval.documents import item_id
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.pipeline.build.scratch_tokenizer import byte_tokenizer
from tests.support.lmeval import Listener, made_up, plain_renderer
from tests.support.models import DOCS, byte_renderer, write_task

# Without it lm-eval indexes its thousands of built-in tasks, once for each call.
MANAGER = TaskLibrary().manager


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
    assert named.encode_targets(["x"], [""])[0][-1] == vocabulary["<|endoftext|>"]


def test_unusable_chat_settings_are_refused():
    with pytest.raises(ModelError, match="'chatmll' was not found; "):
        byte_renderer(Chat(template="chatmll"))
    with pytest.raises(ModelError, match=r"chat\.stop names '<end>', .*single tokens"):
        byte_renderer(Chat(stop=("<end>",)))
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match=r"no eos token; .*`chat\.stop`"):
        Renderer(endless, Chat())


def test_a_text_in_place_of_the_question_keeps_the_drawn_examples_whatever_was_rendered_before(tmp_path: Path):
    write_task(tmp_path, num_fewshot=2, fewshot_split="train")
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    examples = task.training_examples(renderer)
    again = TaskLibrary([tmp_path]).load("made_up").training_examples(renderer)
    assert [example.prompt for example in again] == [example.prompt for example in examples]
    shown = {renderer.decode(example.prompt).partition(task.prompt_text(example.doc))[0] for example in examples}
    assert len(shown) > len(examples) / 2, "the examples must vary for this to test anything"
    for example in (*examples[::-1], examples[3]):
        same = task.render_question(example.doc, task.prompt_text(example.doc), renderer)
        assert renderer.encode_prompt(same) == example.prompt
        task.asked(task.test_docs(2), renderer)


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


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_text_in_place_of_the_question_keeps_the_rest_of_the_prompt(chat: bool, tmp_path: Path):
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
