"""Packages of third parties, installed for one test as pip would leave them: modules, metadata and entry points."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(source: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package's modules and entry points into the folder `site`, on the path of this process."""
    site.mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for module in source.glob("*.py"):
        shutil.copy(module, site)
    declare(project["name"], project["entry-points"], site, monkeypatch)


def declare(name: str, groups: Mapping[str, Mapping[str, str]], site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the metadata of a package with these entry points, by group, into `site`, on the path of this process."""
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sections = (
        "\n".join([f"[{group}]", *(f"{point} = {value}" for point, value in points.items())])
        for group, points in groups.items()
    )
    (folder / "entry_points.txt").write_text("\n".join(sections) + "\n")
    monkeypatch.syspath_prepend(str(site))
