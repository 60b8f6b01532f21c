"""A teacher from outside: it knows how often each token follows another, as a table that it reads from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from harness.errors import ConfigError
from harness.teachers.teacher import Needs, OpenTeacher, TeacherKind, TeacherSite

if TYPE_CHECKING:
    from harness.lm.checkpoints import Loaded
    from harness.lm.logprobs import TeacherRequest, TeacherScores
    from harness.lm.rollouts import Batch


class BigramKind(TeacherKind):
    """The suite's `teacher: {kind: bigram, table: FILE}`."""

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled", "top_k"})

    table: Path = Field(description="a JSON file: weights of the next token by token id")
    smoothing: float = Field(default=1.0, gt=0, description="weight of a token that the table does not name")

    def check(self) -> None:
        """Refuse a table that is not there, before anything is trained."""
        if not self.table.is_file():
            raise ConfigError(f"teacher.table: {self.table} is not a file; name one that holds weights by token id")

    def open(self, student: Loaded, site: TeacherSite) -> Bigram:
        """Read the table."""
        return Bigram(self, len(student.model.get_output_embeddings().weight))


class Bigram(OpenTeacher):
    """log p(y | x) depends only on the token before y."""

    def __init__(self, kind: BigramKind, rows: int) -> None:
        import torch

        text = kind.table.read_text()
        self._identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        weights = torch.full((rows, rows), kind.smoothing)
        for token, following in json.loads(text).items():
            for after, weight in following.items():
                weights[int(token), int(after)] = weight
        self.logprobs: Any = (weights / weights.sum(-1, keepdim=True)).log()

    @property
    def identity(self) -> str:
        """The digest of the table."""
        return self._identity

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """Look up each response token after the one before it."""
        from harness.lm.logprobs import TeacherScores

        rows = (self.logprobs / temperature).log_softmax(-1)[batch.input_ids[batch.predicts]]
        top = rows.topk(request.top_k, dim=-1)
        entropy = -(rows.exp() * rows).sum(-1) if request.entropy else None
        return TeacherScores(rows.gather(-1, batch.targets[:, None])[:, 0], top.indices, top.values, entropy)
