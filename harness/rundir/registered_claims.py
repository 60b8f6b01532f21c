"""Registered claims: the claims that are fixed before the first run, and copied into the manifests of later runs.

    runs/claims.jsonl     one line for each registration, appended by `harness claims register`

A run copies the registrations of its suite into its manifest when it starts. So the manifest shows which claims were fixed
before the run, and for which configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.config.base import digest
from harness.config.run_spec import Paths, RunSpec, identity_of
from harness.config.suite import JOINT, Suite
from harness.rundir.differences import without_autocast
from harness.rundir.files import json_line, read_lines, sync
from harness.rundir.schema import Manifest, RegisteredClaims

REGISTERED = "claims.jsonl"


def covers(registered: RegisteredClaims, run: Manifest) -> bool:
    """Return whether a run has the configuration that was registered with the claims for its adapter and order."""
    kinds: tuple[Paths, ...] = ("ids", "names")
    present = [configuration_digest(run.config, paths=paths) for paths in kinds]
    return registered.configurations.get(_key(run.adapter, run.order)) in present


def configuration_digest(config: Mapping[str, Any], *, paths: Paths = "ids") -> str:
    """Return the digest of the part of a run's configuration that decides its numbers, without its seed and autocast.

    A suite may leave `autocast` to the machine, and claims may be registered on another one. With `names` it is the digest
    of earlier versions, see `identity_of`.
    """
    unseeded = {key: value for key, value in config.items() if key != "seed"}
    return digest(without_autocast(identity_of(unseeded, paths=paths)))


def configurations_of(suite: Suite) -> dict[str, str]:
    """Return the configuration digests of a suite's runs, by the text `adapter, order`."""
    orders = dict.fromkeys(["default", *suite.orders])
    with suppress(ValueError):  # stages that differ in more than steps have no joint order
        suite.ordered_stages(JOINT)
        orders[JOINT] = None
    return {
        _key(entry, order): configuration_digest(RunSpec(suite, entry, 0, order).config())
        for entry in suite.adapters
        for order in orders
    }


def append_registrations(out: Path, registrations: Sequence[RegisteredClaims]) -> Path:
    """Append registrations to `<out>/claims.jsonl` and return that file; they are on disk when this returns."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / REGISTERED
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json_line(each.as_json()) for each in registrations)
    sync(file)
    return file


def registrations_for(out: Path, suite: str) -> tuple[RegisteredClaims, ...]:
    """Return the registrations for a suite in `<out>/claims.jsonl`, in order."""
    return tuple(each for each in read_lines(out / REGISTERED, RegisteredClaims) if each.suite == suite)


def _key(adapter: str, order: str) -> str:
    return f"{adapter}, {order}"
