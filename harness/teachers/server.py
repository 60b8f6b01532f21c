"""A teacher behind vLLM's OpenAI API, on one server or several replicas: `teacher: {kind: server, urls: [...], model: NAME}`.

`/v1/completions` with `prompt_logprobs` returns the log-probabilities of the prompt's token and of the K most probable ones at
every position, at temperature 1. Each request also contains the probe of `harness.teachers.server_probe`, whose scores show
that the same process and model answered. If a loss needs only the sampled token and the servers can score exact ids, only
these are requested (`harness.teachers.exact_ids`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator

from harness.errors import ConfigError, ModelError, TrainingError
from harness.lm.checkpoints import Loaded
from harness.lm.completions import COMPLETIONS, Position, read_choices, read_prompt
from harness.lm.logprobs import TeacherRequest, TeacherScores
from harness.lm.replicas import Patience, Replicas
from harness.lm.rollouts import Batch, Rollout
from harness.teachers.exact_ids import ExactIds
from harness.teachers.server_probe import ServerProbe, examine
from harness.teachers.server_start import ServerStart
from harness.teachers.teacher import Needs, OpenTeacher, TeacherKind, TeacherSite

SPARE = 8  # tokens requested in addition, if some have no row in the student
# Scores are refused if the top K differ by less than FLAT nats at more than FLAT_SHARE of the positions.
FLAT, FLAT_SHARE = 1e-4, 0.5


class Server(TeacherKind):
    """Where the servers are, what they serve, and how requests to them are limited and retried."""

    provides: ClassVar[frozenset[Needs]] = frozenset({"sampled", "top_k"})
    gives_entropy: ClassVar[bool] = False

    urls: tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...] = Field(
        default=(),
        description="one address for each replica, such as http://node1:8000; empty where `start` starts them",
    )
    start: ServerStart | None = Field(
        default=None, description="start the servers, keep them running, and end them with the command"
    )
    model: str = Field(description="the name under which the servers know the model")
    revision: str = Field(default="", description="of the model, for the manifest; a server does not report it")
    max_logprobs: int = Field(default=20, gt=0, description="the `--max-logprobs` of the servers; vLLM's default is 20")
    batch: int = Field(default=8, gt=0, description="sequences in one request")
    concurrency: int = Field(default=8, gt=0, description="requests in flight at each replica")
    timeout: float = Field(default=120.0, gt=0, description="seconds for one try of a request")
    deadline: float = Field(default=900.0, ge=0, description="seconds for all tries of a request; then the run stops")
    start_deadline: float = Field(default=60.0, ge=0, description="the same before a run begins")
    wrong_answers: int = Field(
        default=5, gt=0, description="malformed answers to one request after which the run stops"
    )
    tolerance: float = Field(
        default=0.02,
        gt=0,
        description="mean difference of the probe's log-probabilities, in nats, that rounding explains",
    )
    exact_ids: bool = Field(
        default=True,
        description="ask for the response's own tokens alone where the servers offer it and a loss needs no more",
    )
    api_key_variable: str | None = Field(default=None, description="environment variable that holds the API key")

    @model_validator(mode="after")
    def _require_urls_or_start(self) -> Self:
        if bool(self.urls) == (self.start is not None):
            found = "both urls and start" if self.urls else "neither urls nor start"
            raise ValueError(
                f"found {found}; give `urls` of servers that run, or `start`, by which the harness starts them"
            )
        return self

    def with_servers(self, served: Callable[[Server], Server]) -> Server:
        """Return what `served` returns for this teacher if the harness starts its servers, else itself."""
        return self if self.start is None else served(self)

    def refuse(self, request: TeacherRequest, temperature: float) -> None:
        """Raise `ConfigError` for a temperature other than 1, and for more tokens than the servers return."""
        if temperature != 1:
            raise ConfigError(
                f"training.temperature is {temperature:g}, but a server returns log-probabilities at temperature 1; set it to "
                "1, or use a teacher in the run's own process"
            )
        if request.top_k > self.max_logprobs:
            raise ConfigError(
                f"the adapter needs the teacher's {request.top_k} most probable tokens, but teacher.max_logprobs is "
                f"{self.max_logprobs}; start the server with --max-logprobs {request.top_k} and set teacher.max_logprobs, or "
                "lower the adapter's top_k"
            )

    def check(self) -> None:
        """Raise `ModelError` if a replica does not serve the model, `TrainingError` if it does not return `max_logprobs`."""
        replicas = self.connect(self.start_deadline)
        try:
            for number, url in enumerate(self.addresses):
                self._served_by(replicas, url)
                body = self.body([[1, 2]], self.max_logprobs)
                replicas.post(COMPLETIONS, body, lambda _, answer: read_choices(answer, 1), number)
        finally:
            replicas.close()

    @property
    def context(self) -> int | None:
        """The smallest `max_model_len` of the servers, less the token that a completion must generate; None if not known."""
        replicas = self.connect(self.start_deadline)
        try:
            lengths = [self._served_by(replicas, url).get("max_model_len") for url in self.addresses]
        finally:
            replicas.close()
        known = [int(length) for length in lengths if length is not None]
        return min(known) - 1 if known else None

    def open(self, student: Loaded, site: TeacherSite) -> ServerTeacher:
        """Check the servers against the student's tokenizer and against each other, then return the teacher."""
        replicas = self.connect(self.deadline)
        try:
            probe = examine(self, replicas, student, site.folder)
        except BaseException:
            replicas.close()
            raise
        return ServerTeacher(self, replicas, probe, len(student.model.get_output_embeddings().weight))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The replicas' addresses without `/v1`."""
        return tuple(url.rstrip("/").removesuffix("/v1") for url in self.urls)

    def connect(self, deadline: float) -> Replicas:
        """Return a client of the replicas; raises `ConfigError` without addresses, or without the API key."""
        if not self.urls:
            raise ConfigError("teacher.start describes servers that this command does not start; give teacher.urls")
        headers: dict[str, str] = {}
        if self.api_key_variable is not None:
            if not (key := os.environ.get(self.api_key_variable)):
                raise ConfigError(
                    f"teacher.api_key_variable names {self.api_key_variable}, which is not set; export it before you run the "
                    "command"
                )
            headers["Authorization"] = f"Bearer {key}"
        patience = Patience(self.timeout, deadline, self.wrong_answers)
        return Replicas(self.addresses, patience, self.concurrency, headers)

    def body(self, prompts: Sequence[Sequence[int]], top_k: int) -> dict[str, Any]:
        """Return the request that scores prompts of token ids, with `top_k` tokens at each position."""
        return {
            "model": self.model,
            "prompt": [list(ids) for ids in prompts],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
            "return_token_ids": True,
        }

    def _served_by(self, replicas: Replicas, url: str) -> dict[str, Any]:
        """Return a replica's description of the model; raises `ModelError` if it does not serve the model."""
        listed = replicas.get(url, "/v1/models")
        data = listed.get("data") if isinstance(listed, dict) else None
        models = {model["id"]: model for model in data or () if isinstance(model, dict) and "id" in model}
        if self.model not in models:
            raise ModelError(
                f"the server at {url} serves {', '.join(map(repr, models)) or 'no model'}, expected {self.model!r}; correct "
                "teacher.model or teacher.urls"
            )
        return models[self.model]


class ServerTeacher(OpenTeacher):
    """Scores responses on the servers; an answer is used only if its scores of the probe are the teacher's."""

    def __init__(self, kind: Server, replicas: Replicas, probe: ServerProbe, rows: int) -> None:
        self.kind, self.replicas, self.probe, self.rows = kind, replicas, probe, rows
        self._spare = 0
        exact = ExactIds(kind, replicas, probe)
        self.exact = exact if kind.exact_ids and exact.is_offered() else None

    @property
    def identity(self) -> str:
        """A digest of the model's name, its revision and its most probable tokens on the probe."""
        return self.probe.identity

    @property
    def follows_autocast(self) -> bool:
        """False: the servers compute in a precision of their own."""
        return False

    @property
    def scores_exact_ids(self) -> bool:
        """Whether every replica offers it."""
        return self.exact is not None

    @property
    def probe_scores(self) -> tuple[float, ...]:
        """The first replica's scores of the probe when the teacher was opened."""
        return self.probe.now

    def score(self, batch: Batch, request: TeacherRequest, temperature: float) -> TeacherScores:
        """See `Teacher`; raises `TrainingError` for what the API does not return."""
        if temperature != 1 or request.vocabulary or request.entropy:
            raise TrainingError(
                "a server returns log-probabilities of the sampled token and of the most probable ones at temperature 1, and "
                "this adapter needs more; use a teacher in the run's own process"
            )
        positions = self._positions(batch, request.top_k)
        device = batch.targets.device
        scores = TeacherScores(
            torch.tensor([each.sampled for each in positions], device=device),
            torch.tensor([each.top_ids for each in positions], device=device)
            .long()
            .view(len(positions), request.top_k),
            torch.tensor([each.top_logprobs for each in positions], device=device).view(len(positions), request.top_k),
        )
        self._refuse_flat(scores.top_logprobs)
        return scores

    def close(self) -> None:
        """Close the connections."""
        self.replicas.close()

    def _positions(self, batch: Batch, top_k: int) -> list[Position]:
        """Return the positions of all response tokens, with a top K of tokens that have a row in the student."""
        scored = self.exact.score(batch.rollouts) if self.exact and top_k == 0 else {}
        others = [row for row in range(len(batch.rollouts)) if row not in scored]
        scored |= zip(others, self._score_top_k([batch.rollouts[row] for row in others], top_k), strict=True)
        return [position for row in range(len(batch.rollouts)) for position in scored[row]]

    def _score_top_k(self, rollouts: Sequence[Rollout], top_k: int) -> list[list[Position]]:
        """Return each response's positions; asks once more, for more tokens, if some have no row in the student."""
        scored = self._request_scores(rollouts, top_k)
        short = sum(len(each.top_ids) < top_k for part in scored for each in part)
        if short and not self._spare and top_k < self.kind.max_logprobs:
            self._spare = SPARE
            return self._score_top_k(rollouts, top_k)
        if short:
            raise TrainingError(
                f"at {short} positions fewer than {top_k} of the teacher's most probable tokens have a row in the student; "
                "start the server with a larger --max-logprobs and set teacher.max_logprobs"
            )
        return scored

    def _request_scores(self, rollouts: Sequence[Rollout], top_k: int) -> list[list[Position]]:
        count = min(max(1, top_k) + self._spare, self.kind.max_logprobs)

        def read(body: Any, answer: Any) -> list[list[Position]]:
            *sequences, probe = body["prompt"]
            *choices, last = read_choices(answer, len(body["prompt"]))
            # Compared first: another model's scores of these sequences look as good as the teacher's.
            self.probe.compare(read_prompt(last, probe, count))
            return [read_prompt(choice, ids, count) for choice, ids in zip(choices, sequences, strict=True)]

        size = self.kind.batch
        parts = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        bodies = [self.kind.body([*(r.prompt_and_response for r in part), self.probe.ids], count) for part in parts]
        sequences = [each for answer in self.replicas.post_all(COMPLETIONS, bodies, read) for each in answer]
        return [
            # The first position is that of the second token.
            [self._with_rows(each, top_k) for each in positions[len(rollout.example.prompt) - 1 :]]
            for rollout, positions in zip(rollouts, sequences, strict=True)
        ]

    def _with_rows(self, position: Position, top_k: int) -> Position:
        """Return a position with the `top_k` most probable of its tokens that have a row in the student."""
        tokens = zip(position.top_ids, position.top_logprobs, strict=True)
        pairs = [(token, logprob) for token, logprob in tokens if token < self.rows][:top_k]
        return Position(position.sampled, tuple(i for i, _ in pairs), tuple(value for _, value in pairs))

    def _refuse_flat(self, top_logprobs: torch.Tensor) -> None:
        if top_logprobs.shape[-1] < 2 or not len(top_logprobs):
            return
        flat = (top_logprobs[:, 0] - top_logprobs[:, -1] < FLAT).float().mean()
        if flat > FLAT_SHARE:
            raise TrainingError(
                f"the teacher gives its most probable tokens equal log-probabilities at {float(flat):.0%} of the positions, "
                "like a server whose weights are asleep or not loaded; restart it, then run the same command again to continue"
            )
