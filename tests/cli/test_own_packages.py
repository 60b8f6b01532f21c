"""A foreign package under one of our names is found before anything of it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.cli.own_packages import PACKAGES, check_own_packages
from harness.errors import ConfigError


def test_our_own_packages_pass():
    check_own_packages()


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "harness"])
def test_a_foreign_package_is_named_with_its_place_and_not_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match=rf"{name}.* at {tmp_path}.*install continual-harness again"):
        check_own_packages()
