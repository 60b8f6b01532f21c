"""The control: a stage that updates nothing, so that any change of a score is noise of the evaluation."""

from __future__ import annotations

from harness.adapter import Adapter, Capabilities, StageContext, StageResult


class NoUpdate(Adapter):
    """Leave the weights as they are."""

    @property
    def capabilities(self) -> Capabilities:
        """It trains on no responses."""
        return Capabilities(trains_on=frozenset())

    def train_stage(self, ctx: StageContext) -> StageResult:
        """Return without training."""
        return StageResult(steps=0)
