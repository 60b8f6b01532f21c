"""Settings of teacher servers that the harness starts: `teacher: {kind: server, model: NAME, start: {gpus: ["6", "7"]}}`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from harness.config.base import Strict

VISIBLE = "CUDA_VISIBLE_DEVICES"


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ServerStart(Strict):
    """The command of a server, and where its replicas run."""

    command: tuple[str, ...] = Field(
        default=("vllm", "serve"), min_length=1, description="the program; the harness adds model, port and limits"
    )
    path: str | None = Field(
        default=None, description="folder or hub id of what is served; null takes `model` of the teacher"
    )
    options: tuple[Annotated[str, BeforeValidator(_as_text)], ...] = Field(
        default=(), description="more of the program's options, such as --tensor-parallel-size"
    )
    gpus: tuple[Annotated[str, Field(pattern=r"^[^,\s]+(,[^,\s]+)*$"), BeforeValidator(_as_text)], ...] = Field(
        default=(),
        description="a replica for each entry, on the GPUs that it names, such as 6 or 4,5; empty is one replica",
    )
    environment: dict[str, Annotated[str, BeforeValidator(_as_text)]] = Field(
        default={}, description="variables of the servers, in addition to the harness's own"
    )
    host: str = Field(
        default="127.0.0.1", description="where they listen; on a cluster, an address that all nodes reach"
    )
    deadline: float = Field(default=1800.0, gt=0, description="seconds until all replicas answer; then the run stops")
    restarts: int = Field(default=3, ge=0, description="how often each replica that ended is started again")

    def commands(self, model: str, revision: str, max_logprobs: int, ports: tuple[int, ...]) -> list[list[str]]:
        """Return the command of each replica, one for each port."""
        fixed = [*self.command, self.path or model, "--served-model-name", model, "--host", self.host]
        fixed += ["--max-logprobs", str(max_logprobs), *(["--revision", revision] if revision else [])]
        return [[*fixed, "--port", str(port), *self.options] for port in ports]

    def environments(self) -> list[dict[str, str]]:
        """Return the environment variables of each replica, in addition to the harness's own."""
        return [{**self.environment, **({VISIBLE: gpus} if gpus else {})} for gpus in self.gpus or ("",)]
