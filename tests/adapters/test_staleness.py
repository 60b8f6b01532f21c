"""`training.staleness: 1`: a step's rollouts are drawn before the last step's update, weighed, logged and resumed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.conformance.all_checks import check_adapter
from adapters.conformance.contract import Killed, MemorySnapshots
from adapters.conformance.small_stage import AdapterUnderTest, train_small_stage
from adapters.loop.tokens import MOST
from adapters.opd import OPD
from harness.adapter import StageContext, make_adapter
from harness.config.suite import AdapterEntry, Suite
from harness.config.training import Optimizer, Training
from harness.engines.engine import Completion, Engine, Sampling
from harness.engines.hf import HFEngine
from harness.errors import ConfigError, TrainingError
from harness.lm.rollouts import Rollout
from harness.pipeline.adapter_checks import check_adapters
from tests.support.broken import DrawsDoNotMatter
from tests.support.models import micro_suite

STEPS = 4


class Background:
    """Draws with a copy of the weights of the moment, in a thread, as a server does; claims one log-probability, or none."""

    def __init__(self, engine: HFEngine, claimed: float | None) -> None:
        self.engine, self.claimed = engine, claimed

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        return self.begin(prompts, sampling)()

    def begin(self, prompts: Sequence[list[int]], sampling: Sampling) -> Callable[[], list[Completion]]:
        drawn = self.engine.generate(prompts, sampling)
        found: list[Completion] = []
        thread = threading.Thread(target=lambda: found.extend(drawn))
        thread.start()

        def wait() -> list[Completion]:
            thread.join()
            if self.claimed is None:
                return found
            return [replace(c, logprobs=(self.claimed,) * len(c.tokens)) for c in found]

        return wait


def staged(folder: Path, lines: list[dict[str, Any]], kept: list[list[Rollout]], **training: Any) -> StageContext:
    subject = AdapterUnderTest(make_adapter("opd", AdapterEntry()), folder)
    ctx = subject.stage(steps=STEPS, dtype=torch.float32, scripted=False, reference_seed=0, **training)
    return replace(ctx, log=lines.append, keep=lambda _, __, rollouts, ___: kept.append(list(rollouts)))


def trained(
    folder: Path, engine: Callable[[StageContext], Engine] | None = None, moves: bool = True, **training: Any
) -> tuple[list[dict[str, Any]], list[list[Rollout]], dict[str, torch.Tensor]]:
    """Return the steps' lines, the rollouts of each, and the weights at the end."""
    lines: list[dict[str, Any]] = []
    kept: list[list[Rollout]] = []
    ctx = staged(folder, lines, kept, **training)
    ctx = replace(ctx, engine=engine(ctx)) if engine else ctx
    if not moves:
        still = Optimizer(lr=1e-12, weight_decay=0)
        ctx = replace(ctx, training=ctx.training.model_copy(update={"optimizer": still}))
    train_small_stage(OPD(), ctx)
    return lines, kept, {name: value.clone() for name, value in ctx.student.model.state_dict().items()}


def test_the_rollouts_of_a_step_are_those_of_the_weights_before_the_last_update(tmp_path: Path):
    fresh_lines, fresh, _ = trained(tmp_path)
    lines, stale, _ = trained(tmp_path, staleness=1)
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1]
    assert "staleness" not in fresh_lines[0]
    assert fresh[0][0].staleness is None
    assert [r.response for r in stale[0]] == [r.response for r in fresh[0]]
    # The second step's are drawn by the weights that drew the first one's, with the second step's draws.
    _, one, _ = trained(tmp_path, moves=False)
    assert [r.response for r in stale[1]] == [r.response for r in one[1]]
    assert lines[0]["importance_mean"] is None
    assert all(0 < line["importance_mean"] <= line["importance_max"] for line in lines[1:])


def test_stale_rollouts_of_weights_that_do_not_move_are_fresh_ones(tmp_path: Path):
    fresh, _, _ = trained(tmp_path, moves=False)
    stale, _, _ = trained(tmp_path, moves=False, staleness=1)
    for one, other in zip(fresh, stale, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    assert stale[1]["importance_mean"] == pytest.approx(1, abs=1e-5)


def test_an_engine_in_the_background_needs_the_log_probabilities_with_which_it_drew(tmp_path: Path):
    lines, kept, _ = trained(
        tmp_path, lambda ctx: Background(HFEngine(ctx.student.model, ctx.renderer.tokenizer), -8.0), staleness=1
    )
    assert all(logprob == -8 for rollout in kept[1] for logprob in rollout.logprobs or ())
    assert lines[1]["importance_max"] > 0
    with pytest.raises(TrainingError, match="log-probabilities"):
        trained(
            tmp_path, lambda ctx: Background(HFEngine(ctx.student.model, ctx.renderer.tokenizer), None), staleness=1
        )


def test_a_stage_that_is_killed_goes_on_with_the_rollouts_that_it_had_drawn(tmp_path: Path):
    _, kept, expected = trained(tmp_path, staleness=1)
    snapshots = MemorySnapshots(stop_at=2)
    with pytest.raises(Killed):
        train_small_stage(OPD(), replace(staged(tmp_path, [], [], staleness=1), snapshots=snapshots))
    after: list[list[Rollout]] = []
    ctx = replace(staged(tmp_path, [], after, staleness=1), snapshots=MemorySnapshots(snapshots.state))
    train_small_stage(OPD(), ctx)
    assert [[r.response for r in step] for step in after] == [[r.response for r in step] for step in kept[2:]]
    assert [[r.logprobs for r in step] for step in after] == [[r.logprobs for r in step] for step in kept[2:]]
    assert all(torch.equal(value, expected[name]) for name, value in ctx.student.model.state_dict().items())


def test_a_token_that_became_much_more_probable_counts_no_more_than_the_cap(tmp_path: Path):
    # The engine claims that it drew every token with probability e^-8; most are more probable now.
    lines, _, _ = trained(
        tmp_path, lambda ctx: Background(HFEngine(ctx.student.model, ctx.renderer.tokenizer), -8.0), staleness=1
    )
    assert lines[1]["importance_max"] > MOST
    assert 0 < lines[1]["importance_cut"] <= 1


@pytest.mark.slow
def test_conformance_says_which_losses_tolerate_stale_rollouts():
    def outcome(adapter: Any) -> str:
        (found,) = check_adapter(adapter, ["stale responses"])
        return found.result

    assert outcome(OPD()) == "passes"
    assert outcome(make_adapter("fkl", AdapterEntry())) == "passes"
    assert outcome(DrawsDoNotMatter()) == "fails"


@pytest.mark.parametrize("kind", ["trl", "external"])
def test_a_trainer_that_draws_for_itself_is_refused(kind: str):
    options = {"command": ["true", "{output}"]} if kind == "external" else {}
    raw = {**micro_suite(), "adapters": {kind: {"options": options}}}
    raw["training"] = {**raw["training"], "staleness": 1}
    raw["stages"] = [{"task": task, "training": raw["training"]} for task in raw["stages"]]
    with pytest.raises(ConfigError, match="staleness"):
        check_adapters(Suite.model_validate(raw))


def test_the_default_is_not_part_of_a_hash():
    assert "staleness" not in Training().model_dump()
    assert Training(staleness=1).model_dump()["staleness"] == 1
