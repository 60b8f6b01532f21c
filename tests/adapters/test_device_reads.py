"""A step reads numbers from its device a fixed number of times, however many micro-batches it has.

A GPU works behind the host. Each number that the host reads, in Python's `float` as in a mask that selects, makes it wait.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.aopd import AOPD
from adapters.gkd import GKD
from adapters.loop.step import Step
from adapters.loop.training_loop import LoopAdapter
from adapters.opd import OPD
from harness.adapter import StageContext
from harness.lm import optimiser
from harness.lm.rollouts import Batch
from tests.support.stages import stage

READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class Reads(TorchDispatchMode):
    """Counts the operations for which a host waits for its device."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in ("index", "index_put_") else []
        )
        self.found[name] += name in READS or bool(masks)
        return func(*args, **(kwargs or {}))


def reads_of(adapter: LoopAdapter, micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the reads of a step while it asks the teacher, while it updates, and while it writes its line."""
    found = {"ask": Counter[str](), "update": Counter[str]()}

    def counted(name: str, work: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with Reads(found[name]):
                return work(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Step, "_ask", counted("ask", Step._ask))
        patch.setattr(optimiser.Updater, "update", counted("update", optimiser.Updater.update))
        # Ids that do not fit are refused at once on a CPU alone.
        patch.setattr("harness.lm.output_layer.REFUSES_IDS_AT_ONCE", set())
        if isinstance(adapter, GKD):
            patch.setattr(
                "harness.lm.output_layer.FUSED", {"cpu"}
            )  # rows that no kernel computes are checked as they come
        # Masks are on the host, so finding their places waits for nothing.
        patch.setattr(
            Batch, "places", property(lambda self: torch.from_numpy(self.predicts.numpy().ravel().nonzero()[0]))
        )
        # transformers looks once a pass, before its first layer, whether positions are those of a packed batch.
        patch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
        ctx: StageContext = stage({"micro_batch": micro_batch})
        adapter.train_stage(ctx)
    return {name: counts.total() for name, counts in found.items()}


@pytest.mark.parametrize("adapter", [OPD(), AOPD(top_k=4), AOPD(top_k=4, tail="bucket"), GKD(lmbda=1)])
def test_no_micro_batch_waits_for_its_device(adapter: LoopAdapter, monkeypatch: pytest.MonkeyPatch):
    few, many = (reads_of(adapter, size, monkeypatch) for size in (6, 1))
    assert few["ask"] == many["ask"] == 0
    assert few["update"] == many["update"]


def test_the_reads_are_seen(monkeypatch: pytest.MonkeyPatch):
    original = OPD.token_losses

    def peeking(self: OPD, tokens: Any) -> Any:
        float(tokens.logq.sum())
        return original(self, tokens)

    monkeypatch.setattr(OPD, "token_losses", peeking)
    few, many = (reads_of(OPD(), size, monkeypatch) for size in (6, 1))
    assert many["update"] - few["update"] == 5
