"""Short commands import little: time that every use of them pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures_serve import Serve
from tests.startup import HEAVY, imported

CHECKED = ("blockfile", "erofs", "fuse_overlayfs", "native", "overlayfs", "stargz")
"""Packages of the snapshotters whose drivers are not needed to find out whether they work."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["images", "pull", "--help"],
        ["serve", "--help"],
        ["btrfs", "setup", "--help"],
        ["devmapper", "setup", "--help"],
        ["lazy", "prefetch", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    modules = imported(*arguments)
    assert "lamina.cli.main" in modules
    assert modules & (HEAVY | {"lamina.store", "sqlite3"}) == set()
    assert not any(name.startswith("lamina.lazy") for name in modules)


def test_plugins_ls_imports_nothing_heavy(tmp_path: Path) -> None:
    modules = imported("--root", str(tmp_path), "plugins", "ls")
    assert "lamina.plugins" in modules
    # Whether fuse-overlayfs and aufs work is found out by running programs.
    assert modules & (HEAVY - {"subprocess"} | {"lamina.store", "sqlite3"}) == set()
    # What these drivers need of the machine is tried without them.
    drivers = {name for name in modules if name.endswith(".driver")}
    assert drivers & {f"lamina.snapshotters.{name}.driver" for name in CHECKED} == set()


@pytest.mark.root
def test_snapshots_imports_nothing_of_the_api(tmp_path: Path) -> None:
    modules = imported("--root", str(tmp_path), "snapshots", "--snapshotter", "native", "ls")
    assert "lamina.store" in modules
    assert not [name for name in modules if name.startswith(("lamina.api", "google", "hpack"))]
    assert modules & HEAVY == set()


@pytest.mark.root
def test_a_daemons_snapshots_need_neither_store_nor_event_loop(serve: Serve) -> None:
    modules = imported("snapshots", "--address", str(serve.address), "ls")
    assert "lamina.api.client" in modules
    assert modules & (HEAVY - {"socket"} | {"sqlite3", "lamina.api.server"}) == set()
