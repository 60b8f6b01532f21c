"""Foreign folders: circular links end, and names in a manifest do not lead out of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import RunError
from harness.rundir.reader import find_runs
from tests.support.reports.run_factory import write_run


def test_links_in_circles_end(tmp_path: Path):
    run = write_run(tmp_path / "runs")
    for name in ("one", "two"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "runs", target_is_directory=True)
        (tmp_path / "runs" / "tiny" / name).symlink_to(tmp_path, target_is_directory=True)
    assert [found.path.resolve() for found in find_runs([tmp_path])] == [run.resolve()]


@pytest.mark.parametrize("name", ["../../../secret", "/etc", "..", "a/b", ".ssh"])
@pytest.mark.parametrize("key", ["stage", "trains", "probes", "profiles"])
def test_a_manifests_names_never_become_paths(key: str, name: str, tmp_path: Path):
    run = write_run(tmp_path / "runs")
    manifest = json.loads((run / "manifest.json").read_text())
    if key == "stage":
        manifest["stages"][0]["name"] = name
    elif key == "trains":
        manifest["stages"][0]["trains"] = [name]
    elif key == "probes":
        manifest["probes"] = [name]
    else:
        manifest["profiles"] = {name: ["tiny_weather"]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError):
        find_runs([tmp_path])
