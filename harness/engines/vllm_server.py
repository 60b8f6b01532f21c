"""The backend `vllm_server`: rollouts and evaluation on vLLM servers that take new weights without a restart.

```
VLLM_SERVER_DEV_MODE=1 vllm serve STUDENT --served-model-name student --generation-config vllm --dtype float32 \
    --logprobs-mode processed_logprobs --worker-extension-cls harness.engines.vllm_worker.WeightsInPlace
```
Weights are handed over in a folder that trainer and servers see under the same path, or, with GPUs and
`--weight-transfer-config '{"backend": "nccl"}'`, over the network.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.engines.backend import Backend, EngineSite
from harness.engines.handed_over import own_prefix, remove_abandoned
from harness.engines.served_settings import EXTENSION, check_server
from harness.errors import RunError, TrainingError
from harness.lm.completions import COMPLETIONS

if TYPE_CHECKING:
    from torch import Tensor

    from harness.engines.engine import CheckpointEngine, Completion, Sampling
    from harness.engines.transfer.weight_transfer import WeightTransfer
    from harness.lm.replicas import Replicas

# Else a server that takes its defaults from the checkpoint applies the penalties of its generation_config.json.
PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class VLLMServer(Backend):
    """Where the servers are, and how requests to them are limited, if `backend` is vllm_server."""

    is_shared: ClassVar[bool] = True
    beyond_context: ClassVar[int] = -1  # a request to vLLM generates at least one token

    urls: tuple[Annotated[str, Field(pattern=r"^https?://\S+$")], ...] = Field(
        min_length=1, description="one address for each replica, such as http://node1:8000"
    )
    model: str = Field(default="student", description="the name that the servers give the model")
    max_model_len: int | None = Field(
        default=None, gt=0, description="the servers'; null takes the model's own context"
    )
    shared_folder: Path | None = Field(
        default=None, description="where weights are handed over; null is for servers on this machine"
    )
    transfer: Literal["auto", "folder"] = Field(
        default="auto",
        description="auto sends weights over the network if trainer and servers have GPUs and are set up for it",
    )
    concurrency: int = Field(default=64, gt=0, description="requests in flight at each replica")
    timeout: float = Field(default=1800.0, gt=0, description="seconds for one try of a request")
    deadline: float = Field(default=3600.0, ge=0, description="seconds for all tries of a request; then the run stops")
    dtype: str = Field(default="float32", description="of the servers' weights, as their --dtype; in the keys of cells")

    def context(self, of_model: int) -> int:
        """Return the shorter of `max_model_len` and the model's own context."""
        return min(of_model, self.max_model_len or of_model)

    def start(self, checkpoint: Path, site: EngineSite) -> CheckpointEngine:
        """Hand the checkpoint's weights over to the servers; raises `RunError` if they do not take them.

        A checkpoint with another configuration than that of the servers is refused, see `check_server`.
        """
        if self.shared_folder is not None:
            remove_abandoned(self.shared_folder)
        engine = ServedEngine(self, site)
        try:
            for url in engine.replicas.urls:
                check_server(engine.replicas, url, self.dtype, checkpoint)
            engine.load(checkpoint)
        except BaseException:
            engine.close()
            raise
        return engine


class ServedEngine:
    """See `CheckpointEngine`; each answer has its own seed, so it does not depend on the replica that gives it."""

    def __init__(self, backend: VLLMServer, site: EngineSite) -> None:
        from harness.engines.same_weights import SameWeights
        from harness.lm.replicas import Patience, Replicas

        self.backend = backend
        addresses = tuple(url.rstrip("/").removesuffix("/v1") for url in backend.urls)
        patience = Patience(backend.timeout, backend.deadline)
        self.replicas: Replicas = Replicas(addresses, patience, backend.concurrency, role="rollout server")
        self.same = SameWeights(addresses, patience, backend.model)
        self.weights: str | None = None
        self.transfer = self._open_transfer(site)

    def _open_transfer(self, site: EngineSite) -> WeightTransfer | None:
        """Return what sends weights over the network; None for a folder, with a warning if the trainer has a GPU."""
        from harness.engines.transfer.weight_transfer import WeightTransfer, find_obstacle

        if self.backend.transfer == "folder":
            return None
        if (missing := find_obstacle(self.replicas, site.device)) is None:
            return WeightTransfer(self.replicas, site.device, self.backend.timeout)
        if site.device.startswith("cuda"):
            site.warn(f"the rollout servers take weights from a folder and not over the network, because {missing}")
        return None

    def load(self, checkpoint: Path, weights: str | None = None) -> None:
        """Let every replica load a checkpoint's weights; do nothing if `weights` is the digest of those that they have."""
        if weights is not None and weights == self.weights:
            return
        with self._handing_over() as tag:
            if self.transfer is not None:
                self._send(tag, lambda transfer: transfer.send_checkpoint(checkpoint))
            else:
                with _shared_copy(checkpoint, self.backend.shared_folder) as folder:
                    place = str(folder.absolute())  # a server has a working directory of its own
                    self._call("take_weights", {"folder": place, "tag": tag}, self._access)
        self.weights = weights

    @property
    def takes_tensors(self) -> bool:
        """Whether `take` works: if weights go over the network."""
        return self.transfer is not None

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Let every replica load tensors by name from this process's GPU."""
        with self._handing_over() as tag:
            self._send(tag, lambda transfer: transfer.send_tensors(weights))

    def _send(self, tag: str, send: Callable[[WeightTransfer], None]) -> None:
        """Send weights over the network; each worker confirms at the end that it has been there since the announcement."""
        assert self.transfer is not None
        self._call("announce_transfer", {"tag": tag})
        send(self.transfer)
        self._call("prepare_after_transfer", {"tag": tag})

    @contextmanager
    def _handing_over(self) -> Generator[str]:
        """Yield the tag of a hand-over; afterwards check that every replica has its weights."""
        # The digest stays unknown until all replicas have loaded them, so that a failure cannot leave a mixture in use.
        self.weights = None
        yield self.same.begin()
        self._command("/reset_prefix_cache", {}, "check its log")
        self.same.check()

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
        """Return completions with the log-probabilities with which they were drawn; see `Engine`."""
        from harness.lm.seeding import prompt_seeds

        bodies = [
            self._body(ids, sampling) | {"seed": seed}
            for ids, seed in zip(prompts, prompt_seeds(prompts, sampling.seed), strict=True)
        ]
        completions = self.replicas.post_all(COMPLETIONS, bodies, _read_completion)
        # A server that was restarted in between has answered with the weights of its start.
        self.same.check()
        return completions

    def prompt_logprobs(self, prompts: Sequence[list[int]]) -> list[list[dict[int, float] | None]]:
        """Return for each position the log-probabilities of the prompt's token and of the most probable one."""
        from harness.engines.same_weights import read_scored, scoring

        scored = self.replicas.post_all(COMPLETIONS, [scoring(self.backend.model, ids) for ids in prompts], read_scored)
        self.same.check()
        return scored

    def describe(self) -> dict[str, Any]:
        """Return what determines the answers: version and dtype; raises `RunError` if the servers' versions differ."""
        versions = {self._version_of(url) for url in self.replicas.urls}
        if len(versions) > 1:
            raise RunError(
                f"the rollout servers run vLLM {', '.join(sorted(versions))}, expected one version; install the same on all"
            )
        return {"engine": "vllm_server", "vllm": versions.pop(), "dtype": self.backend.dtype}

    def _version_of(self, url: str) -> str:
        answer = self.replicas.get(url, "/version")
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise RunError(
                f"the server at {url} answers /version with {answer!r:.200}, expected vLLM's version; check vllm_server.urls"
            )
        return version

    def close(self) -> None:
        """Close the connections; the servers keep running."""
        self.replicas.close()
        self.same.close()
        if self.transfer is not None:
            self.transfer.close()

    def _body(self, ids: list[int], sampling: Sampling) -> dict[str, Any]:
        return {
            "model": self.backend.model, "prompt": [ids], "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1,
            "stop_token_ids": list(sampling.stop_ids), "stop": list(sampling.stop_strings), "ignore_eos": True,
            "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False, **PLAIN,
        }  # fmt: skip

    def _call(self, method: str, kwargs: dict[str, str], advice: str = "check its log") -> None:
        """Call a method of every replica's workers; see `_command`."""
        self._command("/collective_rpc", {"method": method, "kwargs": kwargs}, advice)

    def _command(self, path: str, body: dict[str, Any], advice: str) -> None:
        """Send a command to every replica, one after the other; `advice` is what to do if a replica fails at it."""
        from harness.lm.replicas import WrongAnswersError

        for number, url in enumerate(self.replicas.urls, start=1):
            try:
                self.replicas.command(url, path, body)
            except WrongAnswersError as error:
                raise RunError(
                    f"rollout server {number} at {url} did not take new weights: it answered {error.last}; {advice}; "
                    "the same command continues from the last snapshot"
                ) from error
            except TrainingError as error:
                raise RunError(
                    f"rollout server {number} did not take new weights ({error}); start the servers with "
                    f"VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {EXTENSION}"
                ) from error

    @property
    def _access(self) -> str:
        """What to do if a server cannot read the weights in the folder."""
        if (shared := self.backend.shared_folder) is None:
            return (
                "check its log, and if it runs on another machine or as another user, set vllm_server.shared_folder to a "
                "folder that it sees under the same path"
            )
        return (
            f"check its log, and that it sees {shared.absolute()} (vllm_server.shared_folder) under the same path and may "
            "read it"
        )


@contextmanager
def _shared_copy(checkpoint: Path, shared: Path | None) -> Generator[Path]:
    """Yield a copy of a checkpoint in the shared folder, or the checkpoint itself without one."""
    if shared is None:
        yield checkpoint
        return
    folder = shared / f"{own_prefix()}{uuid.uuid4().hex}"
    try:
        shutil.copytree(checkpoint, folder)
        # The copy has the modes of its source, which may be a private folder. Who sees it is decided by `shared`.
        for path in (folder, *folder.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_completion(_: Any, answer: Any) -> Completion:
    from harness.engines.engine import Completion
    from harness.lm.completions import AnswerError, read_choices

    (choice,) = read_choices(answer, 1)
    tokens, scores = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if not tokens or not isinstance(scores, list) or len(scores) != len(tokens):
        raise AnswerError("the answer has no token ids with a log-probability each")
    finish = "length" if choice.get("finish_reason") == "length" else "stop"
    return Completion([int(token) for token in tokens], finish, tuple(float(score) for score in scores))
