"""Check that the four packages of continual-harness are its own: other distributions install packages of the same names.

`pip install adapters` (AdapterHub) silently overwrites our `adapters`; see docs/decisions/0018-package-names.md.
"""

from __future__ import annotations

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from harness.errors import ConfigError

PACKAGES = ("harness", "adapters", "tasks", "reports")
OWN = "continual-harness"
MARK = f"# Part of {OWN}"  # in each package's __init__.py


def check_own_packages() -> None:
    """Raise `ConfigError` for a package that is missing or belongs to another distribution; imports none of them."""
    for name in PACKAGES:
        spec = find_spec(name)
        place = Path(spec.origin) if spec and spec.origin else None
        if place is None or not place.is_file() or MARK not in place.read_text(encoding="utf-8", errors="replace"):
            owners = [owner for owner in packages_distributions().get(name, ()) if owner != OWN]
            others = ", ".join(dict.fromkeys(owners)) or "another package"
            raise ConfigError(
                f"the Python package {name!r} at {place or 'no place'} is not {OWN}'s: {others} has the same name; uninstall "
                f"it and install {OWN} again (pip install --force-reinstall --no-deps {OWN}), or use a separate environment"
            )
