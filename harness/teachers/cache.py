"""A teacher's scores read from disk: `teacher: {kind: cache, path: FILE, of: {...}}`.

With `of`, that teacher scores the responses that the file lacks, and their scores are written to it. Without `of`, no teacher
is needed and a missing response stops the run. `harness teacher cache` fills a file beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from harness.config.teacher_identity import weights_part
from harness.config.teacher_settings import TeacherSpec
from harness.errors import ConfigError, TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.rollouts import Batch
from harness.teachers.score_checks import ask
from harness.teachers.score_store import ScoreStore, StoredScores, follows_autocast, sequence_key, teacher_identity
from harness.teachers.sub_batches import part_of, put_together
from harness.teachers.teacher import Needs, OpenTeacher, TeacherKind, TeacherSite, refuse_behind

log = logging.getLogger(__name__)

OWN = "own"  # the precision of a teacher without autocast


class Cache(TeacherKind):
    """The file of scores, and the teacher behind it."""

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled", "top_k"})

    path: Path = Field(description="the SQLite file of scores")
    of: TeacherSpec | None = Field(default=None, description="scores what the file lacks; null uses the file alone")
    identity: str = Field(default="", description="whose scores are read, if the file has those of several teachers")

    def refuse(self, request: TeacherRequest, temperature: float) -> None:
        """Raise `ConfigError` for a request that the teacher behind the cache cannot serve."""
        if isinstance(self.of, TeacherKind):
            refuse_behind(self.of, request, temperature)

    def check(self) -> None:
        """Raise `ConfigError` if there is neither a teacher nor a file with the scores of one."""
        if self.of is None:
            self.stored_teacher()
        elif isinstance(self.of, TeacherKind):
            self.of.check()

    def with_servers(self, served: Callable[[Any], Any]) -> Cache:
        """Return the cache with the servers behind it started; see `TeacherKind`."""
        if not isinstance(self.of, TeacherKind):
            return self
        return self.model_copy(update={"of": self.of.with_servers(served)})

    def behind(self, task: str) -> tuple[TeacherSpec, ...]:
        """Return the teacher that scores what the file lacks."""
        return () if self.of is None else (self.of,)

    def open(self, student: Loaded, site: TeacherSite) -> CachedTeacher:
        """Open the file, and the teacher behind it if there is one; raises `ConfigError` if that is not `identity`."""
        store = ScoreStore(self.path)
        if self.of is None:
            return CachedTeacher(store, self.stored_teacher(), None)
        teacher = site.open_teacher(self.of, student)
        store.adopt(teacher.identity)
        probe = teacher.probe_scores
        name = store.served(teacher.identity, probe, teacher.follows_autocast) if probe else teacher.identity
        if self.identity not in ("", teacher.identity, name, weights_part(teacher.identity)):
            teacher.close()
            raise ConfigError(
                f"teacher.identity is {self.identity!r}, but the teacher under teacher.of is {name!r}; leave out one of the "
                "two"
            )
        known = store.teachers() if probe else {}
        others = {each: known[each] for each in known if teacher_identity(each) == teacher.identity and each != name}
        if others:
            log.warning(
                "%s also holds %d responses that this teacher scored in a different or unknown precision (under %s); they are "
                "not used, and scored again where they are needed",
                self.path,
                sum(others.values()),
                ", ".join(others),
            )
        return CachedTeacher(store, name, teacher)

    def stored_teacher(self) -> str:
        """Return the identity of the teacher whose scores are read; raises `ConfigError` if it is not clear."""
        known = ScoreStore(self.path).teachers()
        if not known:
            raise ConfigError(
                f"teacher.path: {self.path} holds no scores; make them with `harness teacher cache`, or add a teacher under "
                "teacher.of"
            )
        if self.identity in known:
            return self.identity
        chosen = [name for name in known if self.identity in ("", teacher_identity(name), weights_part(name))]
        if len(chosen) == 1:
            return chosen[0]
        raise ConfigError(
            f"teacher.identity is {self.identity!r}, but {self.path} has the scores of {', '.join(known)}; choose one"
        )


class CachedTeacher(OpenTeacher):
    """Reads scores, and gets missing ones from the teacher behind it; `hits` and `misses` count responses.

    `name` is that of the rows in the file: the teacher's identity, for a served one with its precision.
    """

    def __init__(self, store: ScoreStore, name: str, teacher: OpenTeacher | None) -> None:
        self.store, self.name, self.teacher = store, name, teacher
        self.hits = self.misses = 0

    @property
    def identity(self) -> str:
        """The identity of the teacher that computed the scores."""
        return teacher_identity(self.name)

    @property
    def scores_exact_ids(self) -> bool:
        """Whether the teacher behind it does; without one, whether a row has no most probable tokens."""
        return self._without_top_k if self.teacher is None else self.teacher.scores_exact_ids

    @cached_property
    def _without_top_k(self) -> bool:
        return self.store.fewest(self.name) == 0

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` for missing responses if there is no teacher behind the cache."""
        if request.vocabulary:
            raise TrainingError("a cache has the most probable tokens, not the whole vocabulary; use another teacher")
        precisions = self._precisions(batch.targets.device.type)
        every = [
            [sequence_key(r.example.prompt, r.response, temperature, precision) for precision in precisions]
            for r in batch.rollouts
        ]
        stored = self.store.get(self.name, [key for keys in every for key in keys])
        known = {key: each for key, each in stored.items() if each.serves(request.top_k, request.entropy)}
        # The first precision in which a response's scores are there; a teacher behind the file has one alone.
        keys = [next((key for key in keys if key in known), keys[0]) for keys in every]
        missing = [row for row, key in enumerate(keys) if key not in known]
        self.hits, self.misses = self.hits + len(keys) - len(missing), self.misses + len(missing)
        if missing:
            # A row serves every request that it served before.
            fewer = [each for key, each in stored.items() if key not in known]
            top_k = max([request.top_k, *(each.top_ids.shape[1] for each in fewer)])
            entropy = request.entropy or any(each.entropy is not None for each in fewer)
            asked = replace(request, top_k=top_k, entropy=entropy)
            known |= self._score_missing(batch, missing, keys, asked, temperature)
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
                f"{self.store.path} lacks the scores of {len(rows)} of {len(keys)} responses with {request.top_k} tokens at "
                f"each position (the first is to item {item.item_id} of {item.task}); add the teacher under teacher.of, or "
                "fill the cache with `harness teacher cache`"
            )
        part = part_of(batch, rows)
        # Scores are checked before they are stored: an error would be in every run that reads the file.
        scores = ask(self.teacher, part, request, temperature)
        lengths = [len(batch.rollouts[row].response) for row in rows]
        sampled, ids, top = (each.split(lengths) for each in (scores.sampled, scores.top_ids, scores.top_logprobs))
        entropy = [None] * len(rows) if scores.entropy is None else scores.entropy.split(lengths)
        new = {
            keys[row]: StoredScores(sampled[place], ids[place], top[place], entropy[place])
            for place, row in enumerate(rows)
        }
        self.store.put(self.name, new)
        return new

    def _precisions(self, device: str) -> tuple[str, ...]:
        """Return the precisions in which scores are looked for: the dtype of the current autocast, else the teacher's own.

        `server` is that of a teacher that does not follow autocast. A float32 teacher's is called `own`. Without a teacher
        behind the file its scores may be in any of them.
        """
        if not follows_autocast(self.name):
            return ("server",)
        if torch.is_autocast_enabled(device):
            return (str(torch.get_autocast_dtype(device)),)
        names = (OWN, *(f"{OWN} {dtype}" for dtype in ("bfloat16", "float16", "float64", "mixed")))
        if self.teacher is None:
            return names
        dtype = self.teacher.computes_in
        return (OWN if dtype in ("", "float32") else f"{OWN} {dtype}",)


def _cut(stored: StoredScores, request: TeacherRequest, device: torch.device) -> TeacherScores:
    k = request.top_k
    entropy = stored.entropy.to(device) if request.entropy and stored.entropy is not None else None
    return TeacherScores(
        stored.sampled.to(device), stored.top_ids[:, :k].to(device), stored.top_logprobs[:, :k].to(device), entropy
    )
