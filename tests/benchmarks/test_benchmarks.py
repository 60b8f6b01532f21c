"""The benchmark's arithmetic, and that the whole of it runs and writes its page."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks.logprobs import logprob_speed as logprobs
from benchmarks.logprobs.logprob_variants import VARIANTS, Size, make_inputs
from benchmarks.logprobs.logprob_work import CLEAR_REFS, WorkCost, measured
from benchmarks.measure import Measurement, in_turn, median_of, per_second, with_range
from benchmarks.results_page import BenchmarkResults, page
from benchmarks.run_benchmarks import TRL, aopd_rows, app, trl_rows
from benchmarks.steps import Steps, from_log
from benchmarks.trl_step import MISSING, installed
from benchmarks.utilisation import count_flops
from harness.config.processor import cpu_has_bfloat16
from harness.lm.logprobs import Head, selected_logprobs
from harness.rundir.schema import Session

MADE: dict[str, Any] = {
    "command": "bench",
    "created": "2026-01-01",
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "hardware": {"cpus": 2, "memory_gib": 4},
    "packages": {"torch": "2.13.0", "transformers": "5.17.0"},
}


def steps(generate: float, teacher: float, rest: float, tokens: int) -> Steps:
    return Steps(count=2, generate=generate, teacher=teacher, rest=rest, responses=8, tokens=tokens)


def test_measures_run_in_turn_and_the_first_round_is_not_counted():
    calls: list[tuple[str, int]] = []

    def measure(name: str, seed: int) -> int:
        calls.append((name, seed))
        return seed

    found = in_turn({name: lambda seed, name=name: measure(name, seed) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [1, 2], "b": [1, 2]}


def test_a_rate_is_work_over_the_time_it_took(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([10.0, 14.0])
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: next(ticks))
    assert per_second(lambda seed: 8 * seed)(3) == 6.0


def test_a_ratio_is_taken_inside_each_repetition():
    row = Measurement("x", "u", ours=[2.0, 12.0, 3.0], baseline="y", theirs=[1.0, 4.0, 6.0])
    assert row.ratios == [2.0, 3.0, 0.5]
    assert with_range(row.ratios) == "2.00 (0.50 to 3.00)"
    assert median_of([1000.0, 3000.0], 0) == "2,000"


def test_steps_add_up_their_phases():
    run = steps(generate=1.0, teacher=0.5, rest=2.5, tokens=160)
    assert (run.seconds, run.tokens_per_second, run.steps_per_second, run.response_length) == (4.0, 40.0, 0.5, 20.0)


def test_a_step_log_becomes_steps_whose_rest_is_all_but_generation_and_teacher():
    def line(generate: float, step: float, length: float) -> dict[str, Any]:
        seconds = {"generate": generate, "teacher": 0.25, "student": 0.5, "step": step}
        return {"seconds": seconds, "response_tokens_mean": length}

    assert from_log([line(1.0, 2.0, 10.5), line(2.0, 4.0, 9.5)], 4) == Steps(2, 3.0, 0.5, 2.5, 8, 80)


def test_steps_are_compared_with_trl_in_each_precision_and_with_the_faster_of_its_two():
    ours, slow, fast = steps(1, 1, 3, 100), steps(2, 2, 6, 100), steps(1, 1, 6, 100)
    found = {
        **{f"{name}, {precision}": [ours] for name in ("OPD", "AOPD") for precision in ("bfloat16", "float32")},
        **{f"{TRL}, bfloat16": [slow], f"{TRL}, float32": [fast]},
    }
    rows = list(trl_rows(found, ["bfloat16", "float32"]))
    assert [row.what for row in rows] == [
        "OPD step, bfloat16",
        "OPD step, float32",
        "OPD step, bfloat16",
        "AOPD step, bfloat16",
    ]
    # 100 tokens in 5 s against 10 s, 8 s, and the faster of both twice
    assert [row.ratios for row in rows] == [[2.0], [pytest.approx(1.6)], [pytest.approx(1.6)], [pytest.approx(1.6)]]


def test_without_trl_there_is_nothing_to_compare_with_it():
    assert not list(trl_rows({"OPD, float32": [steps(1, 1, 3, 100)]}, ["float32"]))


def test_aopd_is_compared_with_opd_without_generation():
    found = {"OPD, float32": [steps(1, 1, 3, 100)], "AOPD, float32": [steps(9, 1, 5, 300)]}
    (row,) = aopd_rows(found, ["float32"])
    assert (row.ours, row.theirs, row.ratios) == ([3000.0], [2000.0], [1.5])


def test_operations_of_products_and_attention_are_counted_forward_and_backward():
    x, w = torch.rand(5, 7, requires_grad=True), torch.rand(7, 3, requires_grad=True)
    assert count_flops(lambda: (x @ w).sum().backward()) == 3 * 2 * 5 * 7 * 3
    q = torch.rand(1, 2, 6, 4, requires_grad=True)
    attend = nn.functional.scaled_dot_product_attention
    forward = 2 * 2 * (2 * 6 * 6 * 4)  # two heads; scores and values, each 2 T T D
    assert count_flops(lambda: attend(q.detach(), q.detach(), q.detach())) == forward
    # The backward computes the scores again and four gradients.
    assert count_flops(lambda: attend(q, q, q).sum().backward()) == forward + forward * 5 // 2


def test_the_operations_of_the_heads_four_products_are_all_counted():
    tokens, vocabulary, width = 10, 50, 8
    hidden, weight = (torch.rand(rows, width, requires_grad=True) for rows in (tokens, vocabulary))
    ids = torch.zeros(tokens, 1, dtype=torch.long)
    counted = count_flops(lambda: selected_logprobs(hidden, Head(weight), ids).chosen.sum().backward())
    assert counted == 4 * 2 * tokens * vocabulary * width


def test_the_page_names_commit_and_shows_every_row_and_trainer():
    row = Measurement("thing", "per s", [4.0, 6.0], "peer", [2.0, 2.0])
    results = BenchmarkResults([row], {"OPD": [steps(1, 0.5, 2.5, 160)]}, ["a note"])
    text = page(results, Session.model_validate(MADE), threads=1, repetitions=2)
    assert "`0123456789ab` with uncommitted changes" in text
    assert "| thing | per s | 5.00 | peer | 2.00 | **2.50 (2.00 to 3.00)** |" in text
    assert "| OPD | 500 | 250 | 1,250 | 2,000 | 0.50 | 40 | 20.0 |" in text


RUNS_LIGER = find_spec("liger_kernel") is not None and os.environ.get("TRITON_INTERPRET") == "1"
SMALL = Size(tokens=24, vocabulary=200, hidden=8)
SAME = {
    "dense_aopd": ("ours_aopd", "ours_aopd_diagnosed"),
    "ours_opd": ("trl_opd",),
    "dense_reverse_kl": ("ours_reverse_kl", "trl_reverse_kl", "liger_reverse_kl"),
    "dense_jsd": ("ours_jsd", "trl_jsd", "liger_jsd"),
    "dense_teacher": ("ours_teacher",),
}


@pytest.mark.parametrize(("one", "other"), [(one, other) for one, others in SAME.items() for other in others])
def test_variants_that_are_compared_compute_the_same_loss_and_gradients(one: str, other: str):
    if other.startswith("trl") and not installed():
        pytest.skip(MISSING)
    if other.startswith("liger") and not RUNS_LIGER:
        pytest.skip("liger-kernel is not installed, or its kernels run neither on a GPU nor in Triton's interpreter")

    def results(name: str) -> list[torch.Tensor]:
        inputs = make_inputs(SMALL, "cpu").first(SMALL.tokens)
        loss = VARIANTS[name](inputs)
        leaves = [inputs.hidden, inputs.weight]
        return [loss.detach(), *(torch.autograd.grad(loss, leaves) if loss.requires_grad else [])]

    for found, expected in zip(results(other), results(one), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not RUNS_LIGER, reason="liger-kernel is not installed, or its kernels do not run here")
def test_ligers_cross_entropy_is_the_mean_negative_log_probability_of_the_sampled_token():
    inputs = make_inputs(SMALL, "cpu").first(SMALL.tokens)
    leaves = [inputs.hidden, inputs.weight]
    ours = -selected_logprobs(inputs.hidden, Head(inputs.weight), inputs.ids[:, :1]).chosen.mean()
    theirs = VARIANTS["liger_opd"](inputs)
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(torch.autograd.grad(theirs, leaves), torch.autograd.grad(ours, leaves))


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the peak of resident memory is read from Linux")
def test_a_measurement_sees_the_memory_of_full_logits():
    large = Size(tokens=1000, vocabulary=20_000, hidden=4)
    logits = 4 * large.tokens * large.vocabulary
    assert measured(VARIANTS["dense_aopd"], large).bytes > 2 * logits
    assert 0 <= measured(VARIANTS["ours_aopd"], large).bytes < logits


def test_the_section_shows_every_comparison_and_says_that_there_is_no_gpu():
    def measure(name: str, size: Size, device: str) -> WorkCost:
        return WorkCost(1.5, 2**20) if name.startswith("ours") else WorkCost(1.0, 4 * 2**20)

    rounds = [logprobs.one_round("cpu", measure)] * 2
    text = logprobs.text({"cpu": rounds}, threads=1)
    what = "AOPD, sampled token and top 32, cpu, float32"
    assert f"| {what}: time | ms | 1,500 | full logits | 1,000 | **1.50 (1.50 to 1.50)** |" in text
    assert f"| {what}: memory | MiB | 1.00 | full logits | 4.00 | **0.25 (0.25 to 0.25)** |" in text
    # 3 products of 4,096 x 512 x 151,936 in 1.5 s
    assert f"| {what}: needed products | GFLOP/s | 1,275 |" in text
    assert "no GPU here" in text
    assert ("TRL" in text) == installed()


def test_without_trl_its_comparisons_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "installed", lambda: False)
    assert not [c for c in logprobs.comparisons() if "trl" in c.theirs]
    assert "TRL" not in "".join(logprobs.notes(1, 1))


@pytest.mark.slow
def test_the_whole_bench_runs_on_the_micro_suite(micro_file: Path, tmp_path: Path):
    out = tmp_path / "results.md"
    options = [
        "--suite",
        str(micro_file),
        "--repetitions",
        "1",
        "--steps",
        "1",
        "--logprob-rounds",
        "0",
        "--start-rounds",
        "0",
        "--report-rounds",
        "0",
        "--vllm-rounds",
        "0",
        "--scale-runs",
        "0",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    assert text in result.output
    precision = "bfloat16" if cpu_has_bfloat16() else "float32"
    rows = (f"| AOPD step without generation, {precision} |", "| generation |", "| student, forward")
    assert all(row in text for row in rows)
    assert (f"| {TRL}, float32 |" in text) == installed() == (MISSING not in text)
