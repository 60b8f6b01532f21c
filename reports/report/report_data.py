"""The data that the page's sections show; each table is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports.claims.claim_file import ClaimFile, shipped_claims
from reports.claims.judge_claims import JudgedSetting, judge_by_setting
from reports.data import flips, learning_curves, matched_pairs, tables
from reports.data.calibration import calibration_table
from reports.data.frames import Frames
from reports.data.methods import methods_of
from reports.report.items import TaskItems, task_items


@dataclass(frozen=True)
class ReportData:
    """The frames of a set of runs, the tables made of them, and the claims to judge on them."""

    frames: Frames
    claims: Sequence[ClaimFile] = ()

    @cached_property
    def claim_files(self) -> Sequence[ClaimFile]:
        """The claims files that were named, or else the shipped ones that are about these runs' methods."""
        return self.claims or shipped_claims({run.adapter for run in self.frames.runs})

    @cached_property
    def judged(self) -> list[JudgedSetting]:
        """The verdicts on the claims, by suite and order; see `judge_claims.judge_by_setting`."""
        return judge_by_setting(self.claim_files, methods_of(self.frames))

    @cached_property
    def retention(self) -> pd.DataFrame:
        """Scores by label, stage and task; see `tables.retention_table`."""
        return tables.retention_table(self.frames.scores)

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """Learning and forgetting by label; see `tables.frontier_table`."""
        return tables.frontier_table(self.frames.scores)

    @cached_property
    def matched(self) -> pd.DataFrame:
        """Pairs of methods, their differences and whether learning is matched; see `matched_pairs.matched_table`."""
        return matched_pairs.matched_table(self.frames)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Every point of every learning curve; see `learning_curves.curve_frame`."""
        return learning_curves.curve_frame(self.frames)

    @cached_property
    def equal_learning(self) -> pd.DataFrame:
        """What pairs of methods kept at equal learning; see `learning_curves.equal_learning_table`."""
        return learning_curves.equal_learning_table(self.frames)

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """Entropy and calibration by method; see `calibration.calibration_table`."""
        return calibration_table(methods_of(self.frames))

    @cached_property
    def compared(self) -> pd.DataFrame:
        """The outcome of every item before and after, by pair of stages; see `flips.compare_answers`."""
        return flips.compare_answers(self.frames)

    @cached_property
    def flips(self) -> pd.DataFrame:
        """Items lost and gained by run and comparison; see `flips.count_flips`."""
        return flips.count_flips(self.compared)

    @cached_property
    def flip_shares(self) -> pd.DataFrame:
        """The same as shares, mean over seeds; see `flips.average_flips`."""
        return flips.average_flips(self.flips)

    @cached_property
    def by_item(self) -> pd.DataFrame:
        """Forgetting and backward transfer by item; see `flips.by_item_table`."""
        return flips.by_item_table(self.frames, self.compared)

    @cached_property
    def items(self) -> list[TaskItems]:
        """The pages of answers, by task; see `items.task_items`."""
        return list(task_items(self.frames, self.compared))

    def link(self, label: str, task: str, stage: int) -> str | None:
        """Return the address of a cell's answers on the page's own site; None where none are stored."""
        found = next((items for items in self.items if items.task == task), None)
        return found.link(label, stage) if found else None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that are written as CSV in addition to those of `tables.write_tables`."""
        return {
            "frontier": self.frontier,
            "matched": self.matched,
            "flips": self.flips,
            "flip_shares": self.flip_shares,
            "advantage": tables.advantage_table(self.frames.own_steps),
            **({} if self.by_item.empty else {"by_item": self.by_item}),
            **({} if self.calibration.empty else {"calibration": self.calibration}),
            **({} if self.curves.empty else {"learning_curves": self.curves, "equal_learning": self.equal_learning}),
        }
