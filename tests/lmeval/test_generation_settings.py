"""Settings that decide answers, and prompts that fit the context: both checked before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.config.evaluation import Decoding
from harness.config.run_spec import RunSpec
from harness.config.suite import Suite
from harness.errors import TaskError
from harness.evaluation.answering import sampling_of
from harness.lmeval.checks import check_test_prompts, check_training_prompts
from harness.lmeval.generation_settings import settle_generation
from harness.lmeval.library import TaskLibrary
from harness.lmeval.task import Task
from harness.lmeval.traps import traps
from tests.support.lmeval import made_up
from tests.support.models import byte_renderer, micro_suite, write_task

COMPLETE = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8}


@pytest.mark.pitfall(
    "without do_sample and temperature, lm-eval decodes greedily with hf and samples at 1.0 with vLLM",
    area="lm-eval",
    guard="`harness/lmeval/generation_settings.py` refuses a task or suite that sets no temperature",
    evidence="temperature is not required",
)
@pytest.mark.pitfall(
    "without `until`, an answer ends at lm-eval's default, which differs between its model classes",
    area="lm-eval",
    guard="`harness/lmeval/generation_settings.py` refuses a task or suite that sets no `until`",
    evidence="`until` is not required",
)
@pytest.mark.pitfall(
    "without a budget, lm-eval generates 256 tokens, too few for an answer with reasoning",
    area="lm-eval",
    guard="`harness/lmeval/generation_settings.py` requires max_gen_toks",
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
    guard="`harness/lmeval/generation_settings.py` merges the overrides into the loaded task",
    evidence="set_config is called without update",
)
def test_a_suites_decoding_replaces_only_what_it_names(tmp_path: Path):
    task = made_up(tmp_path)
    settle_generation(task, Decoding(max_gen_toks=31))
    assert {key: task.generation[key] for key in COMPLETE} == {**COMPLETE, "max_gen_toks": 31}


def test_a_temperature_of_the_suite_samples_although_the_task_s_file_is_greedy(tmp_path: Path):
    task = made_up(tmp_path)
    settle_generation(task, Decoding(temperature=0.7))
    assert sampling_of(task.generation, "made_up", (), 0).temperature == 0.7
    settle_generation(task, Decoding(temperature=0.7, do_sample=False))
    assert sampling_of(task.generation, "made_up", (), 0).temperature == 0


def test_null_and_minus_one_change_nothing(tmp_path: Path):
    task = made_up(
        tmp_path, generation_kwargs={**COMPLETE, "do_sample": None, "temperature": 0.7, "top_p": None, "top_k": -1}
    )
    settle_generation(task, Decoding())
    sampling = sampling_of(task.generation, "made_up", (), 0)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 1.0, 0)


def test_prompts_that_do_not_fit_the_context_are_refused_with_the_numbers(tmp_path: Path):
    write_task(tmp_path)
    task, renderer = TaskLibrary([tmp_path]).load("made_up"), byte_renderer()
    # the longest test prompt: "<|im_start|>user\nsay 0<|im_end|>\n<|im_start|>assistant\n" is 1+5+5+1+1+1+10 = 24 tokens
    check_test_prompts([task], renderer, 24 + 8, 1, None)
    with pytest.raises(TaskError) as error:
        check_test_prompts([task], renderer, 24 + 7, 1, None)
    assert re.match(r"task made_up: .*\b24 tokens .*may take 8, .*context of 31; ", str(error.value))


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
    with pytest.raises(TaskError, match=r"training prompt has 25 tokens .*may take 40\b"):
        check_training_prompts(RunSpec(suite, "long", 0), {"made_up": task}, 33, longest)
    with pytest.raises(TaskError, match=r"training prompt has 25 tokens .*may take 8\b"):
        check_training_prompts(RunSpec(suite, "opd", 0), {"made_up": task}, 32, longest)
