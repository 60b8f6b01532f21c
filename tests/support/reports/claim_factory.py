"""Files of claims for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CLAIM: dict[str, Any] = {
    "name": "learns",
    "text": "AOPD learns {task}",
    "expression": "metric(aopd, learned) > metric(opd, learned)",
    "unit": "points",
    "smallest_effect": 5,
    "scope": {"tasks": ["first"]},
}


def write_claims(folder: Path, *changes: dict[str, Any], **keys: Any) -> Path:
    """Write a file of one claim per change of CLAIM; `keys` are the file's own, by default the first claim is primary."""
    claims = [CLAIM | change for change in changes]
    content = {"title": "A trial", "source": "nowhere", "claims": claims, "primary": [claims[0]["name"]], **keys}
    (folder / "claims.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "claims.yaml"
