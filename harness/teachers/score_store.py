"""Teacher scores on disk: one SQLite file with one row for each sequence, whose scores are safetensors bytes.

A row is identified by teacher, precision, temperature and the exact ids of prompt and response. It serves every request for
at most as many tokens at each position as it has. Several processes may write to one file.

A server has a precision of its own and does not report it, but its scores of a fixed text tell it. Servers of one teacher
whose scores of the text differ by more than one precision explains have separate rows, under names that begin with the
teacher's identity.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.config.teacher_identity import weights_part
from harness.errors import TrainingError

BUSY_SECONDS = 120.0  # to wait while another process writes
TABLE = (
    "CREATE TABLE IF NOT EXISTS scores (teacher TEXT, key TEXT, top_k INTEGER, data BLOB, PRIMARY KEY (teacher, key))"
)
PROBES = "CREATE TABLE IF NOT EXISTS probes (teacher TEXT PRIMARY KEY, scores TEXT)"
SAME = (
    1e-3  # nats, mean: below what bfloat16 and float32 differ by, above what one precision differs by in other batches
)
# The name of a served teacher's rows is its identity, SERVED, a digest, and PARTLY if others of its models follow autocast.
SERVED, PARTLY = "#served-", "+local"
# A row is replaced only by one with more tokens, or with as many and no less next to them (its entropy): another process may
# have asked for more.
WRITE = (
    "INSERT INTO scores VALUES (?, ?, ?, ?) ON CONFLICT (teacher, key) DO UPDATE SET top_k = excluded.top_k, "
    "data = excluded.data WHERE excluded.top_k > scores.top_k "
    "OR (excluded.top_k = scores.top_k AND length(excluded.data) >= length(scores.data))"
)


@dataclass(frozen=True)
class StoredScores:
    """One response's scores, in nats: `sampled` (n,), `top_ids` and `top_logprobs` (n, K), `entropy` (n,) or None."""

    sampled: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    entropy: Tensor | None = None

    def serves(self, top_k: int, entropy: bool) -> bool:
        """Return whether these scores answer a request for `top_k` tokens at each position, with an entropy if asked."""
        return self.top_ids.shape[1] >= top_k and (self.entropy is not None or not entropy)


def sequence_key(prompt: Sequence[int], response: Sequence[int], temperature: float, precision: str) -> str:
    """Return a digest of what a sequence's scores depend on, apart from the teacher."""
    return hashlib.sha256(json.dumps([prompt, response, temperature, precision]).encode()).hexdigest()


def teacher_identity(name: str) -> str:
    """Return the identity of the teacher whose rows have this name."""
    return name.partition(SERVED)[0]


def follows_autocast(name: str) -> bool:
    """Return whether the rows of this name depend on the autocast of the run, as those of a model of its process do."""
    return SERVED not in name or name.endswith(PARTLY)


class ScoreStore:
    """A file of scores, by teacher and sequence; only `put` creates it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teachers(self) -> dict[str, int]:
        """Return the identities of the teachers in the file, with the number of sequences of each; empty without a file."""
        if not self.path.is_file():
            return {}
        with closing(self._open()) as database:
            return dict(database.execute("SELECT teacher, COUNT(*) FROM scores GROUP BY teacher ORDER BY teacher"))

    def fewest(self, teacher: str) -> int | None:
        """Return the fewest tokens at each position that a row of a teacher has; None without rows."""
        if not self.path.is_file():
            return None
        with closing(self._open()) as database:
            return database.execute("SELECT MIN(top_k) FROM scores WHERE teacher = ?", (teacher,)).fetchone()[0]

    def served(self, teacher: str, probe: Sequence[float], partly: bool = False) -> str:
        """Return the name of the rows of a teacher with these scores of the probe, a new one if none has them.

        `partly`: it also has models that follow the autocast of the run.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            database.execute("BEGIN IMMEDIATE")  # so that two processes do not add one server twice
            known = database.execute("SELECT teacher, scores FROM probes ORDER BY teacher").fetchall()
            for name, scores in known:
                if teacher_identity(name) == teacher and _mean_difference(json.loads(scores), probe) <= SAME:
                    return name
            own = hashlib.sha256(json.dumps(list(probe)).encode()).hexdigest()[:8]
            name = f"{teacher}{SERVED}{own}{PARTLY * partly}"
            database.execute("INSERT INTO probes VALUES (?, ?)", (name, json.dumps(list(probe))))
        return name

    def adopt(self, teacher: str) -> None:
        """Give the rows that versions before wrote under a teacher's weights alone the name of its whole identity.

        The first teacher with these weights gets them, and no other configuration of them reads them afterwards.
        """
        former = weights_part(teacher)
        if teacher == former or not self.path.is_file():
            return
        with closing(self._open()) as database, database:
            database.execute("BEGIN IMMEDIATE")
            for table in ("scores", "probes"):
                named = [name for (name,) in database.execute(f"SELECT DISTINCT teacher FROM {table}").fetchall()]
                for name in (name for name in named if teacher_identity(name) == former):
                    whole = f"{teacher}{name.removeprefix(former)}"
                    database.execute(f"UPDATE OR IGNORE {table} SET teacher = ? WHERE teacher = ?", (whole, name))
                    database.execute(f"DELETE FROM {table} WHERE teacher = ?", (name,))

    def get(self, teacher: str, keys: Sequence[str]) -> dict[str, StoredScores]:
        """Return the stored scores of sequences, by key; raises `TrainingError` for a damaged file."""
        if not self.path.is_file():
            return {}
        scores: dict[str, StoredScores] = {}
        with closing(self._open()) as database:
            for key in dict.fromkeys(keys):
                query = "SELECT data FROM scores WHERE teacher = ? AND key = ?"
                if (row := database.execute(query, (teacher, key)).fetchone()) is not None:
                    scores[key] = self._read(row[0])
        return scores

    def put(self, teacher: str, scores: Mapping[str, StoredScores]) -> None:
        """Write the scores of sequences, by key, in one transaction; a stored row with more tokens stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            rows = [(teacher, key, each.top_ids.shape[1], _bytes(each)) for key, each in scores.items()]
            database.executemany(WRITE, rows)

    def _open(self) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
            database.execute(TABLE)
            database.execute(PROBES)
        except sqlite3.DatabaseError as error:
            raise TrainingError(
                f"{self.path} cannot be used as a cache of teacher scores ({error}); delete it, or name another file under "
                "teacher.path"
            ) from error
        return database

    def _read(self, data: bytes) -> StoredScores:
        try:
            tensors = load(data)
            return StoredScores(
                tensors["sampled"], tensors["top_ids"].long(), tensors["top_logprobs"], tensors.get("entropy")
            )
        except (SafetensorError, KeyError) as error:
            raise TrainingError(
                f"{self.path} holds a damaged row ({error}); delete the file and make it again"
            ) from error


def _mean_difference(known: Sequence[float], found: Sequence[float]) -> float:
    """Return the mean absolute difference of two lists of scores, in nats; infinite for lists of different length."""
    if len(known) != len(found) or not known:
        return math.inf
    return sum(abs(a - b) for a, b in zip(known, found, strict=True)) / len(known)


def _bytes(scores: StoredScores) -> bytes:
    tensors = {
        "sampled": scores.sampled.float(),
        "top_ids": scores.top_ids.to(torch.int32),
        "top_logprobs": scores.top_logprobs.float(),
        **({} if scores.entropy is None else {"entropy": scores.entropy.float()}),
    }
    return save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
