"""Calibration: how far sampled answers fall behind greedy ones, from two evaluation profiles of the same weights.

A student that is sure of its answers scores the same under both. A student that keeps a high entropy without knowing better
scores lower where its policy is sampled, so this figure is shown next to entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd

from harness.stats.continual import LEARNING
from harness.stats.estimates import Estimate
from harness.stats.two_way import two_way_interval
from reports.data.methods import ENTROPY, Method, over_tasks, tasks_of_all


class ProfileFigure(NamedTuple):
    """A figure computed from two evaluation profiles of the same weights."""

    name: str
    short: str
    formula: str
    unit: Literal["%", "points"]


CALIBRATION = ProfileFigure(
    "calibration",
    "policy − greedy",
    "1/J Σ_j (R[j][j] under the policy at temperature 1 − R[j][j] under greedy decoding), tasks of both profiles "
    "that are sampled without truncation",
    "points",
)


def calibration(method: Method, stage: int | None = None) -> Estimate:
    """Return the policy's minus the greedy score right after a task's own stage, mean over trained tasks, by seed and item.

    Tasks that one of the two profiles lacks, or whose own file truncates what is sampled, are left out. Empty where the runs
    lack a greedy profile, or one at temperature 1 without truncation.
    """
    found = _profiles(method)
    if found is None:
        return Estimate({})
    learned = over_tasks(LEARNING, _calibrated_tasks(*found))
    greedy, policy = (each.estimate(learned, stage=stage) for each in found)
    return policy - greedy


def uncalibrated_tasks(method: Method) -> list[str]:
    """Return the tasks that a method trains itself and that calibration leaves out."""
    found = _profiles(method)
    if found is None:
        return []
    known = dict.fromkeys(task for each in found for task in each.stage_of)
    shared = {*_calibrated_tasks(*found), *method.first.manifest.fixed_tasks}
    return [task for task in known if task not in shared]


def calibration_table(methods: Iterable[Method]) -> pd.DataFrame:
    """Return a row per method that trains: mean entropy in training and calibration, intervals; empty without profiles.

    `without` names the tasks that calibration leaves out.
    """
    rows = []
    for method in methods:
        found = calibration(method)
        if found.by_seed and not method.control:
            interval = two_way_interval(found.finite()).of_unit(CALIBRATION.unit)
            entropy = two_way_interval(method.estimate(ENTROPY)).of_unit(ENTROPY.unit)
            without = ", ".join(uncalibrated_tasks(method))
            rows.append({"label": method.name, "entropy": entropy, "calibration": interval, "without": without})
    return pd.DataFrame(rows)


def _profiles(method: Method) -> tuple[Method, Method] | None:
    """Return the runs under their greedy profile and under the policy's; None where a run lacks one of them."""
    config: Any = method.first.manifest.config.get("evaluation") or {}
    decoding = config.get("decoding") or {}
    shown = [
        ({**decoding, **{key: value for key, value in each.items() if value is not None}}, found)
        for each in config.get("profiles") or []
        if (found := method.under(str(each["name"])))
    ]
    greedy = [found for decoding, found in shown if decoding.get("temperature") == 0]
    policy = [found for decoding, found in shown if _is_policy(decoding)]
    return (greedy[0], policy[0]) if greedy and policy else None


def _calibrated_tasks(greedy: Method, policy: Method) -> list[str]:
    """Return the trained tasks that both profiles evaluate and that the policy's samples without truncation.

    A task's file may truncate where the suite states nothing, so the settings are those that the task's cells recorded. Cells
    of early versions recorded none; then the profile's count.
    """

    def is_sampled(task: str) -> bool:
        cells = [scores.cell(task, policy.stage_of[task]).results for scores in policy.by_seed.values()]
        recorded = [cell.keys.fields["settings"] for cell in cells if cell and "settings" in cell.keys.fields]
        return all(map(_is_policy, recorded))

    return [task for task in tasks_of_all([greedy, policy]) if task in policy.stage_of and is_sampled(task)]


def _is_policy(decoding: Mapping[str, Any]) -> bool:
    untruncated = decoding.get("top_p") in (None, 1) and decoding.get("top_k") in (None, 0, -1)
    return decoding.get("temperature") == 1 and untruncated
