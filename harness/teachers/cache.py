"""A teacher's scores read from disk: `teacher: {kind: cache, path: FILE, of: {...}}`.

With `of`, a response that the file lacks is scored by that teacher and written; without it, no teacher is needed and a missing
response stops the run. `harness teacher cache` fills a file beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from harness.config.teacher_settings import TeacherSpec
from harness.errors import ConfigError, TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch
from harness.teachers.score_checks import ask
from harness.teachers.score_store import ScoreStore, StoredScores, sequence_key
from harness.teachers.sub_batches import part_of, put_together
from harness.teachers.teacher import Needs, OpenTeacher, TeacherKind, TeacherSite


class Cache(TeacherKind):
    """Where the scores lie, and who gives those that are missing."""

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled", "top_k"})

    path: Path = Field(description="the SQLite file of scores")
    of: TeacherSpec | None = Field(default=None, description="scores what the file lacks; null reads the file alone")
    identity: str = Field(
        default="", description="which teacher's scores are read where the file holds those of several"
    )

    def refuse(self, request: TeacherRequest, temperature: float) -> None:
        """Raise `ConfigError` for a request that the teacher behind the cache cannot serve."""
        if not isinstance(self.of, TeacherKind):
            return
        if request.entropy and not self.of.gives_entropy:
            raise ConfigError(
                f"the adapter needs the teacher's entropy, which a teacher of kind {self.of.kind!r} cannot give"
            )
        self.of.refuse(request, temperature)

    def check(self) -> None:
        """Raise `ConfigError` where there is neither a teacher nor a file with the scores of one."""
        if self.of is None:
            self.stored_teacher()
        elif isinstance(self.of, TeacherKind):
            self.of.check()

    def with_servers(self, served: Callable[[Any], Any]) -> Cache:
        """Return the cache with the teacher behind it started, where the harness starts it."""
        return (
            self.model_copy(update={"of": self.of.with_servers(served)}) if isinstance(self.of, TeacherKind) else self
        )

    @property
    def context(self) -> int | None:
        """The context of the teacher behind the cache, where it says it."""
        return self.of.context if isinstance(self.of, TeacherKind) else None

    def open(self, student: Loaded, site: TeacherSite) -> CachedTeacher:
        """Open the file, and the teacher behind it where there is one."""
        if self.of is None:
            return CachedTeacher(ScoreStore(self.path), self.stored_teacher(), None)
        teacher = site.open_teacher(self.of, student)
        return CachedTeacher(ScoreStore(self.path), teacher.identity, teacher)

    def stored_teacher(self) -> str:
        """Return the identity of the teacher whose scores are read; raises `ConfigError` where that is not clear."""
        known = ScoreStore(self.path).teachers()
        if not known:
            raise ConfigError(
                f"teacher.path: {self.path} holds no scores; make them with `harness teacher cache`, or name a teacher under "
                "teacher.of"
            )
        if self.identity in known:
            return self.identity
        if self.identity or len(known) > 1:
            raise ConfigError(
                f"teacher.identity is {self.identity!r}, but {self.path} holds the scores of {', '.join(known)}; choose one"
            )
        return next(iter(known))


class CachedTeacher(OpenTeacher):
    """Reads scores, and asks the teacher behind it for those that are missing; `hits` and `misses` count responses."""

    def __init__(self, store: ScoreStore, identity: str, teacher: OpenTeacher | None) -> None:
        self.store, self._identity, self.teacher = store, identity, teacher
        self.hits = self.misses = 0

    @property
    def identity(self) -> str:
        """The identity of the teacher whose scores these are."""
        return self._identity

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` for missing responses where no teacher is behind the cache."""
        if request.vocabulary:
            raise TrainingError("a cache holds the most probable tokens, not the whole vocabulary; use another teacher")
        keys = [
            sequence_key(r.example.prompt, r.response, temperature, _precision(batch.targets.device.type))
            for r in batch.rollouts
        ]
        found = self.store.get(self.identity, keys)
        known = {key: each for key, each in found.items() if each.serves(request.top_k, request.entropy)}
        missing = [row for row, key in enumerate(keys) if key not in known]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if missing:
            known |= self._score_missing(batch, missing, keys, request, temperature)
        device = batch.targets.device
        parts = [([row], _cut(known[key], request, device)) for row, key in enumerate(keys)]
        return put_together(batch, request, parts)

    def close(self) -> None:
        """Close the teacher behind the cache."""
        if self.teacher is not None:
            self.teacher.close()

    def _score_missing(
        self, batch: Batch, rows: Sequence[int], keys: list[str], request: TeacherRequest, temperature: float
    ) -> dict[str, StoredScores]:
        if self.teacher is None:
            item = batch.rollouts[rows[0]].example
            raise TrainingError(
                f"{self.store.path} lacks the scores of {len(rows)} of {len(keys)} responses (the first is to item "
                f"{item.item_id} of {item.task}, with {request.top_k} tokens a position); name the teacher under teacher.of, "
                "or fill the cache with `harness teacher cache`"
            )
        part = part_of(batch, rows)
        # What is wrong here would be wrong in every run that reads the file.
        scores = ask(self.teacher, part, request, temperature)
        lengths = [len(batch.rollouts[row].response) for row in rows]
        sampled, ids, top = (each.split(lengths) for each in (scores.sampled, scores.top_ids, scores.top_logprobs))
        entropy = [None] * len(rows) if scores.entropy is None else scores.entropy.split(lengths)
        made = {
            keys[row]: StoredScores(sampled[place], ids[place], top[place], entropy[place])
            for place, row in enumerate(rows)
        }
        self.store.put(self.identity, made)
        return made


def _cut(stored: StoredScores, request: TeacherRequest, device: torch.device) -> TeacherScores:
    k = request.top_k
    entropy = stored.entropy.to(device) if request.entropy and stored.entropy is not None else None
    return TeacherScores(
        stored.sampled.to(device), stored.top_ids[:, :k].to(device), stored.top_logprobs[:, :k].to(device), entropy
    )


def _precision(device: str) -> str:
    """Return the type that the present autocast computes in, which moves scores."""
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "own"
