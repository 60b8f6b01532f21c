"""Keep training rollouts for reading and analysis: `train/rollouts.parquet`, one row per kept rollout.

While a stage trains, they are lines of `rollouts.jsonl`, because a Parquet file cannot be appended to. When a stage continues
from a snapshot, later lines are removed, as from the step log. The Parquet file is written when the stage ends.
"""

# pyright: standard
# pyarrow has no types.
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.lm.chat import Renderer
from harness.lm.rollouts import Rollout
from harness.rundir.files import ROLLOUT_LOG, ROLLOUTS, json_line, replace_file

LINES = 1024  # rows in memory at a time while the Parquet file is written
TOKEN_FIGURES = ("student_logprob", "entropy", "teacher_logprob", "advantage", "teacher_top1", "routed_fkl")
COLUMNS = pa.schema(
    [
        *((name, pa.int32()) for name in ("step", "rollout")),
        *((name, pa.string()) for name in ("task", "item_id", "source", "prompt", "response")),
        ("response_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("finish", pa.string()),
        ("reward", pa.float64()),
        ("credit", pa.float64()),
        *((name, pa.float64()) for name in TOKEN_FIGURES),
    ]
)
# Further columns where `training.staleness` is not 0: by how many steps the weights that drew a rollout were older, and the
# mean over its tokens of the student's probability divided by theirs.
STALE_COLUMNS = pa.schema([("staleness", pa.int32()), ("importance", pa.float64())])

Keep = Callable[[int, str, Sequence[Rollout], Sequence[Mapping[str, float]]], None]


def keep_nothing(step: int, source: str, rollouts: Sequence[Rollout], figures: Sequence[Mapping[str, float]]) -> None:
    """Keep no rollouts."""


class RolloutLog:
    """The kept rollouts of one stage: the first `per_step` of each step; None keeps all, 0 none.

    A step's prompts are in random order, so its first rollouts are an unbiased sample.
    """

    def __init__(self, folder: Path, renderer: Renderer, per_step: int | None) -> None:
        self.log, self.parquet = folder / ROLLOUT_LOG, folder / ROLLOUTS
        self.renderer, self.per_step = renderer, per_step

    def keep(self, step: int, source: str, rollouts: Sequence[Rollout], figures: Sequence[Mapping[str, float]]) -> None:
        """Append a step's rollouts.

        `source` is who wrote them: student, data or teacher. `figures` holds, for each rollout, means over its tokens by name:
        those of TOKEN_FIGURES that are known.
        """
        rows = enumerate(islice(zip(rollouts, figures, strict=True), self.per_step))
        lines = [
            json_line({"step": step, "rollout": number, "source": source, **self._facts(rollout), **known})
            for number, (rollout, known) in rows
        ]
        if lines:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def finish(self) -> None:
        """Write the Parquet file of a trained stage; the lines stay until `clear`."""
        if self.log.is_file():
            replace_file(self.parquet, self._write)

    def clear(self) -> None:
        """Remove the lines of a finished stage."""
        self.log.unlink(missing_ok=True)

    def _facts(self, rollout: Rollout) -> dict[str, Any]:
        return {
            "task": rollout.example.task,
            "item_id": rollout.example.item_id,
            "prompt": self.renderer.tokenizer.decode(rollout.example.prompt),
            "response": self.renderer.decode(rollout.response),
            "response_ids": rollout.response,
            "tokens": len(rollout.response),
            "finish": rollout.finish,
            "reward": rollout.reward,
            "credit": rollout.credit,
            **({} if rollout.staleness is None else {"staleness": rollout.staleness}),
        }

    def _write(self, path: Path) -> None:
        with self.log.open(encoding="utf-8") as lines:
            stale = "staleness" in json.loads(lines.readline())
        columns = pa.unify_schemas([COLUMNS, STALE_COLUMNS]) if stale else COLUMNS
        with pq.ParquetWriter(path, columns, compression="zstd") as writer, self.log.open(encoding="utf-8") as lines:
            while rows := [json.loads(line) for line in islice(lines, LINES)]:
                writer.write_table(pa.Table.from_pylist(rows, schema=columns))
