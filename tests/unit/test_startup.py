"""Short commands import little: time that every use of them pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.startup import HEAVY, imported


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["images", "pull", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported(*arguments)
    assert "lamina.cli.main" in modules
    assert modules & (HEAVY | {"lamina.store", "sqlite3"}) == set()


def test_plugins_ls_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = imported("--root", str(tmp_path), "plugins", "ls")
    assert "lamina.plugins" in modules
    assert modules & (HEAVY | {"lamina.store", "sqlite3"}) == set()
