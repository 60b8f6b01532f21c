"""Packages of third parties, installed for one test as pip would leave them: modules, metadata and entry points."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest


def install(source: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package's modules and entry points into the folder `site` and on the path of this process."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(groups) + "\n")
    for module in source.glob("*.py"):
        shutil.copy(module, site)
    monkeypatch.syspath_prepend(str(site))
