"""Runs named: a suite, one of its adapter entries, an order of stages and a seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from harness.config.base import merge
from harness.config.suite import Stage, Suite


@dataclass(frozen=True)
class RunSpec:
    """One run: a suite, one of its adapter entries, an order of stages and a seed."""

    suite: Suite
    entry: str
    seed: int
    order: str = "default"
    out: Path = Path("runs")

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.out / self.suite.name / self.entry / self.order / f"seed{self.seed}"

    @property
    def label(self) -> str:
        """The run's short name on the terminal."""
        order = "" if self.order == "default" else f" {self.order}"
        return f"{self.suite.name} {self.entry}{order} seed {self.seed}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in this run's order."""
        return self.suite.ordered_stages(self.order)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks that the stages train, in this run's order."""
        return tuple(task for stage in self.stages for task in stage.trains)

    def steps_before(self, stage: int) -> int:
        """Return the training steps of all stages before one, counted from 1; after the last there are all of them."""
        return sum(self.suite.training_for(s, self.entry).steps for s in self.stages[: stage - 1])

    def config(self) -> dict[str, Any]:
        """Return all that decides this run's numbers, and nothing of its siblings."""
        apart = {"adapters", "seeds", "orders", "description", "snapshot_minutes", "keep_rollouts", "trackers"}
        suite = self.suite.model_dump(mode="json", exclude=apart)
        if profiles := suite["evaluation"].get("profiles"):
            # A hash knows no order of keys, and the first profile is the one whose scores are the suite's.
            suite["evaluation"]["profiles"] = [{"name": name, **profile} for name, profile in profiles.items()]
        entry = self.suite.adapters[self.entry]
        adapter = {**entry.model_dump(mode="json"), "adapter": entry.adapter or self.entry}
        own = {"adapter": adapter, "seed": self.seed}
        return merge(suite, {**own, "stages": [stage.model_dump(mode="json") for stage in self.stages]})


def plan_runs(suite: Suite, entries: Sequence[str], seeds: Sequence[int], order: str, out: Path) -> list[RunSpec]:
    """Return the runs of a sweep, seed by seed, so that the first seed's comparison is complete first."""
    return [RunSpec(suite, entry, seed, order, out) for seed, entry in product(seeds, entries)]
