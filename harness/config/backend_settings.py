"""The settings of the backend that a suite names, validated by the class that is registered under that name.

A suite says `backend: NAME` and, in a block called NAME, how that backend runs. No backend is named here: the entry point
group `harness.engines` maps each name to a `Backend` (see `harness.engines.backend`), whose fields are the block's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import create_model

from harness.config.base import Strict
from harness.config.plugins import load_plugin

GROUP = "harness.engines"


class BackendSettings(Strict):
    """What the configuration needs to know about a backend."""

    # How many tokens more than the context a text that is scored may have; an engine reads each of its tokens.
    beyond_context: ClassVar[int] = 0

    def context(self, of_model: int) -> int:
        """Return the longest sequence, in tokens, that the backend accepts for a model whose context is `of_model`."""
        return of_model


def backend_settings_class(name: str) -> type[BackendSettings]:
    """Return the class of a registered backend; raises `ConfigError` for a name that is not registered."""
    return load_plugin(GROUP, name, "backend", BackendSettings)


def read_settings(blocks: Mapping[str, Any]) -> dict[str, BackendSettings]:
    """Validate the blocks of several backends, by name; a `ValidationError` names the block and the key."""
    fields: dict[str, Any] = {name: (backend_settings_class(name), ...) for name in blocks}
    read = create_model("Backends", __base__=Strict, **fields).model_validate(dict(blocks))
    return {name: getattr(read, name) for name in blocks}
