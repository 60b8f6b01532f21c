"""The conformance suite: sound adapters pass, broken ones fail by the check that is meant for them, oracles agree."""

from __future__ import annotations

import math
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.commands.adapter_check import WRAPPED
from adapters.conformance.all_checks import CHECKS, IN_PROCESSES, check_adapter, failures
from adapters.conformance.outcomes import Outcome
from adapters.loop.divergences import generalised_jsd, top_k_forward_kl
from adapters.loop.tokens import Tokens
from adapters.opd import OPD
from adapters.sft import SFT, SeqKD
from adapters.wrappers.wrapper import Wrapper
from harness.adapter import Adapter, StageResult, make_adapter, registered
from harness.cli.app import main
from harness.config.suite import AdapterEntry
from harness.errors import ConfigError
from tests.support import broken
from tests.support.packages import declare

LOSS = (
    "gradient",
    "accumulation",
    "no detached branch",
    "expected gradient",
    "direction",
    "teacher = student",
    "credit",
)
GATE = ("limits of the gate", "advantage zero")
TRAINER = "import shutil; from safetensors.numpy import load_file, save_file; a, b = '{checkpoint}', '{output}'; \
shutil.copytree(a, b); f = '/model.safetensors'; w = load_file(a + f); save_file({k: 0.9 * v for k, v in w.items()}, b + f, \
{'format': 'pt'})"
NEEDED: dict[str, dict[str, Any]] = {"external": {"command": ["{python}", "-c", TRAINER]}}


def made(name: str, **options: Any) -> Adapter:
    """Return a registered adapter; a wrapper that does not say what it wraps takes OPD, as on the command line."""
    try:
        wraps = issubclass(registered()[name].load(), Wrapper)
    except ImportError as error:
        pytest.skip(str(error))
    return make_adapter(name, AdapterEntry(adapter=name, options={**({"of": WRAPPED} if wraps else {}), **options}))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "trl")) for name in registered()]
)
def test_every_registered_adapter_conforms(name: str):
    outcomes = list(check_adapter(made(name, **NEEDED.get(name, {}))))
    if missing := [outcome.sentence for outcome in outcomes if outcome.result == "skipped"]:
        pytest.skip(missing[0])
    assert failures(outcomes) == []
    assert [outcome.check for outcome in outcomes] == list(CHECKS)
    assert any(outcome.result == "passes" for outcome in outcomes)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("opd", {"weight": 1.25}),
    ("opd", {"clip": 0.2, "dual_clip": 3.0, "updates_per_rollout": 2, "reduction": "token_mean"}),
    ("aopd", {"tail": "bucket"}),
    ("aopd", {"tail": "renormalise"}),
    ("aopd", {"symmetric": True, "threshold": 0.5}),
    ("aopd", {"gate": "prob_diff", "threshold": 0.2, "clip": 0.2, "dual_clip": 3.0}),
    ("aopd", {"threshold": math.inf}),
    ("aopd", {"fkl_weight": 2.0}),
    ("aopd", {"threshold": -math.inf, "top_k": 4}),
    ("gkd", {"beta": 0.0}),
    ("gkd", {"beta": 1.0, "lmbda": 1.0}),
    ("fkl", {"top_k": None}),
    ("fkl", {"tail": "bucket"}),
    ("grpo", {"scale": False}),
    ("kl_to_start", {"of": "aopd"}),
    ("ewc", {"of": "gkd", "strength": 1e4}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{name} {options}" for name, options in VARIANTS])
def test_options_change_the_method_and_not_its_promises(name: str, options: dict[str, Any]):
    outcomes = list(check_adapter(made(name, **options), [*LOSS, *GATE, "masks", "empty and cut responses"]))
    assert failures(outcomes) == []


def test_lora_trains_a_method_with_a_fixed_teacher_of_its_own_weights():
    fixed: dict[str, Any] = {"adapter": "sdft", "options": {"ema_rate": 0}}
    assert failures(check_adapter(made("lora", of=fixed), ["trains", "resume", "masks"])) == []


BROKEN: list[tuple[type[Adapter], str, str]] = [
    (
        broken.FlippedKL, "direction",
        r"is that of the forward KL\(p \|\| q\), but the adapter declares the reverse KL\(q \|\| p\); swap",
    ),
    (broken.WrongSign, "direction", "lowers neither KL(p || q) nor KL(q || p)"),
    (broken.DividedByK, "direction", "is 0.025 times that of the declared forward KL(p || q); drop the factor"),
    (broken.FromElsewhere, "teacher = student", "teacher and student are the same, but the expected gradient is "),
    (broken.DetachedForwardKL, "no detached branch", "the loss moves with log q on the teacher's top K, but has no grad"),
    (broken.DetachedAddition, "no detached branch", "the loss moves with log q on the teacher's top K, but has no grad"),
    (broken.DetachedEverything, "no detached branch", "96 of 96 tokens have no gradient in the student's logits"),
    (broken.DetachedEverything, "expected gradient", "the expected gradient is 0.0e+00 although student and teacher differ"),
    (broken.ClampedForwardKL, "no detached branch", "tokens routed to forward KL have no gradient in the student's logits"),
    (broken.MeanOverMicroBatch, "accumulation", "not by each micro-batch's"),
    (broken.MeanPenalty, "accumulation", "not by each micro-batch's"),
    (broken.MeanByWeights, "accumulation", "not by each micro-batch's"),
    (broken.GateUpsideDown, "limits of the gate", "threshold inf: 100% of the tokens go to forward KL, expected 0%"),
    (broken.StrictGate, "advantage zero", "sends tokens with A_t = 0 to the policy gradient, expected forward KL"),
    (broken.ShiftedMask, "masks", "the mask is shifted by 1: positions "),
    (broken.ShiftedMask, "gradient", "of its size away from autograd on dense logits"),
    (broken.WeightlessStop, "masks", "the stop token 1 of response [14, 15, 0, 17, 1] has weight 0"),
    (broken.WeightlessStop, "gradient", "of its size away from autograd on dense logits"),
    (broken.DroppedStop, "masks", "the stop token 1 of response [14, 15, 0, 17, 1] is not in the loss"),
    (broken.PromptsToo, "masks", "a prompt token is in the loss: positions "),
    (broken.SwallowedZeros, "teacher zeros", "the teacher gave log-probability 0 for every token and training went on"),
    (broken.OneByOne, "failed request", "gave log-probability 0 for every token of one response and training went on"),
    (broken.SwallowedNaN, "teacher NaN", "the teacher gave NaN and training went on"),
    (broken.AnyVocabulary, "vocabulary", "a teacher with 41 tokens and a student with 40 trained without an error"),
    (broken.FailsOtherwise, "vocabulary", "the stage raised ValueError: something else entirely"),
    (broken.NegativeSFT, "credit", "a step against the gradient makes references less probable; look at the sign"),
    (broken.NegativeGRPO, "credit", "a step against the gradient makes responses with a high reward less probable"),
    (broken.UpsideDownCredit, "credit", "a step against the gradient makes responses with a high reward less probable"),
    (broken.DividesByTokens, "empty and cut responses", "the stage raised ZeroDivisionError: division by zero"),
    (broken.ForgetfulOptimiser, "resume", "taken up from its snapshot, ends with other weights"),
    (broken.DrawsDoNotMatter, "stale responses", "of its size away from that of fresh ones"),
    (broken.DrawsByItself, "same seed, same weights", "two runs with one seed end with other weights"),
    (broken.NoSteps, "trains", "it reports 0 steps, but the weights changed"),
    (broken.Lenient, "options are frozen", "its options can be changed after they were read"),
    (broken.Lenient, "options are described", "option taste has no description"),
    (broken.Lenient, "options refuse unknown keys", "the unknown option `no_such_option: 1` is accepted silently"),
    (broken.Drifting, "options are read back", "its options, written out and read again, are others"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "check", "sentence"), BROKEN, ids=[f"{c.__name__}-{check}" for c, check, _ in BROKEN])
def test_a_broken_adapter_fails_for_its_own_reason(cls: type[Adapter], check: str, sentence: str):
    (outcome,) = check_adapter(cls(), [check])
    assert outcome.result == "fails", outcome
    assert re.search(sentence, outcome.sentence) if "\\" in sentence else sentence in outcome.sentence


def test_every_check_finds_a_broken_adapter():
    assert {check for _, check, _ in BROKEN} == set(CHECKS)


@pytest.mark.slow
def test_two_processes_are_checked_and_what_they_lack_is_one_sentence():
    def outcome_of(adapter: Adapter) -> Outcome:
        (found,) = check_adapter(adapter, IN_PROCESSES)
        return found

    assert [outcome_of(adapter).result for adapter in (made("aopd", top_k=4), made("lora"))] == ["passes", "passes"]
    apart = outcome_of(broken.MeanOverMicroBatch())
    assert apart.result == "fails"
    assert re.search(r"two processes .*differ by up to .*\d", apart.sentence)
    failed = outcome_of(broken.OnlyInTheFirst())
    assert failed.result == "fails"
    assert failed.sentence.endswith("ValueError: only the first process has the data")
    assert outcome_of(made("none")).result == "does not apply"


def test_a_broken_method_fails_nothing_that_it_does_right():
    found = {outcome.check for outcome in failures(check_adapter(broken.FlippedKL()))}
    assert found == {"direction"}


def test_checks_that_do_not_apply_to_an_adapter_say_why():
    def reasons(adapter: Adapter) -> dict[str, Outcome]:
        return {o.check: o for o in check_adapter(adapter, [*LOSS, *GATE]) if o.result == "does not apply"}

    sft, none, wrapper = reasons(SFT()), reasons(made("none")), reasons(made("replay"))
    assert sft["direction"].sentence == "no teacher takes part"
    assert none["gradient"].sentence.startswith("it has its own trainer")
    assert wrapper["gradient"].sentence.startswith("it wraps another adapter")
    assert set(reasons(OPD())) == {*GATE, "credit"}


def test_an_adapter_that_is_never_called_does_not_pass_the_check_of_vocabularies():
    class Blind(SeqKD):
        def train_stage(self, ctx: Any) -> StageResult:
            raise AssertionError("called")

    (outcome,) = check_adapter(Blind(), ["vocabulary"])
    assert (outcome.result, outcome.sentence.split(";")[0]) == ("does not apply", "its teacher only answers")


def test_a_method_of_the_loop_with_its_own_optimiser_does_not_pass():
    class OwnOptimiser(OPD):
        def train_stage(self, ctx: Any) -> StageResult:
            with torch.no_grad():
                next(ctx.student.parameters()).mul_(0.9)
            return StageResult(ctx.training.steps)

    found = {
        o.check: o for o in check_adapter(OwnOptimiser(), ["trains", "gradient", "accumulation", "masks", "direction"])
    }
    assert found.pop("trains").result == "passes"
    assert {o.result for o in found.values()} == {"does not apply"}
    assert "optimiser of the stage" in found["gradient"].sentence


def test_an_adapter_whose_library_is_missing_is_skipped_with_the_reason():
    class Imports(OPD):
        def train_stage(self, ctx: Any) -> Any:
            import_module("no_such_library")

    class Refuses(OPD):
        def refuse(self, training: Any) -> None:
            raise ConfigError("trains with TRL, which is not installed; `pip install trl`")

    (missing,) = check_adapter(Imports(), ["trains"])
    assert missing.result == "skipped"
    assert "'no_such_library'; install" in missing.sentence
    (refused,) = check_adapter(Refuses(), ["trains"])
    assert (refused.result, refused.sentence) == (
        "skipped",
        "trains with TRL, which is not installed; `pip install trl`",
    )


def harness(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_line_lists_adapters_with_needs_options_and_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert harness("adapters", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in registered())
    assert "gate: log_ratio" in out
    assert "as the wrapped" in out


@pytest.mark.slow
def test_the_command_line_checks_an_adapter_and_its_exit_code_says_how_it_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "160")
    assert (
        harness("adapters", "check", "replay", "--option", "share=0.5", "--no-processes", monkeypatch=monkeypatch) == 0
    )
    out = capsys.readouterr().out
    assert "share=0.5" in out
    assert "0 fails" in out
    monkeypatch.setattr("adapters.commands.adapter_check.make_adapter", lambda *_: broken.Lenient())
    assert harness("adapters", "check", "opd", "--no-processes", monkeypatch=monkeypatch) == 1
    assert "option taste has no description" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert harness("adapters", "check", "opd", "--option", "clip", monkeypatch=monkeypatch) == 2
    assert "--option clip: " in capsys.readouterr().err
    assert harness("adapters", "check", "odp", monkeypatch=monkeypatch) == 2
    assert re.search(r"'odp'; .*'opd'", capsys.readouterr().err)
    declare("broken", {"harness.adapters": {"gone": "no_such_module:X"}}, tmp_path, monkeypatch)
    assert harness("adapters", "check", "gone", monkeypatch=monkeypatch) == 2
    assert "gone = no_such_module:X " in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_generalised_jsd_is_trls(beta: float):
    pytest.importorskip("trl")
    trainer: Any = import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    draw = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(2, 7, 11, generator=draw, dtype=torch.float64) for _ in range(2))
    theirs, ours = (student.clone().requires_grad_() for _ in range(2))
    expected = trainer.generalized_jsd_loss(theirs, teacher, beta=beta, reduction="none").sum(-1)
    found = generalised_jsd(ours.log_softmax(-1), teacher.log_softmax(-1), beta)
    torch.testing.assert_close(found, expected)
    assert found.min() > 0.01
    torch.testing.assert_close(_slope(found, ours), _slope(expected, theirs))


@pytest.mark.parametrize("top_k", [1, 4, 11])
@pytest.mark.parametrize("tail", ["none", "bucket", "renormalise"])
def test_top_k_forward_kl_is_the_dense_sum_over_the_teachers_top_k(top_k: int, tail: Any):
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(9, 11, generator=draw, dtype=torch.float64, requires_grad=True)
    p = torch.randn(9, 11, generator=draw, dtype=torch.float64).softmax(-1)
    q, top = logits.softmax(-1), p.topk(top_k)
    kept = torch.zeros_like(p).scatter(1, top.indices, 1.0)
    held_p, held_q = (p * kept).sum(-1, keepdim=True), (q * kept).sum(-1, keepdim=True)
    if tail == "renormalise":
        expected = (kept * p / held_p * ((p / held_p) / (q / held_q)).log()).sum(-1)
    else:
        expected = (kept * p * (p / q).log()).sum(-1)
    if tail == "bucket" and top_k < 11:
        expected = expected + ((1 - held_p) * ((1 - held_p) / (1 - held_q)).log())[:, 0]
    logq, empty = logits.log_softmax(-1), torch.zeros(9, dtype=torch.float64)
    rest = logq.masked_fill(kept.bool(), -torch.inf).logsumexp(-1)
    tokens = Tokens(empty, empty, empty, logq.gather(1, top.indices), top.values.log(), rest_logq=rest)
    found = top_k_forward_kl(tokens, tail)
    torch.testing.assert_close(found, expected)
    if tail != "renormalise" or top_k > 1:
        assert found.abs().max() > 0.01
    torch.testing.assert_close(_slope(found, logits), _slope(expected, logits))


def _slope(losses: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0]
