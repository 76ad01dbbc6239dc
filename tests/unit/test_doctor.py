"""Which snapshotter is best, what drivers say they need, and containerd's configuration."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lamina import snapshotters
from lamina.config import Config
from lamina.doctor import Level, best_of, examine_backends, examine_containerd
from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin


class Driver:
    abilities: frozenset[str] = frozenset()

    def close(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, name: str, **more: Any) -> None:
    """Put a driver in the place of one of the twelve."""
    module = ModuleType(f"driver_of_{name}")
    fields: dict[str, Any] = {"load": lambda config, directory: Driver(), **more}
    plugin = SnapshotterPlugin(id=name, config=SnapshotterConfig, **fields)
    module.PLUGIN = plugin  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(snapshotters.DRIVERS, name, f"{module.__name__}:PLUGIN")


def need(what: str, answer: str | None, **more: str) -> Need:
    return Need(what, "try", lambda directory: answer, "do it", **more)


def test_needs_are_tried_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(directory: Path) -> str | None:
        assert directory.is_dir()
        raise OSError(5, "Input/output error")

    needs = (need("a", None), need("b", "no such luck"), Need("c", "try", broken, "mend it"))
    install(monkeypatch, "zfs", needs=needs)
    [zfs] = [b for b in examine_backends(tmp_path, Config()) if b.status.id == "zfs"]
    assert zfs.status.status == "ok"
    assert [trial.reason for trial in zfs.trials] == [
        "",
        "no such luck",
        "[Errno 5] Input/output error",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_highest_rank_that_works_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: SnapshotterConfig, directory: Path) -> Driver:
        raise SnapshotterSkipped("btrfs", reason="no btrfs", fix="mkfs.btrfs")

    install(monkeypatch, "zfs", rank=1000, merit="is made here")
    install(monkeypatch, "btrfs", rank=2000, load=refuse)
    backends = examine_backends(tmp_path, Config())
    best = best_of(backends)
    assert best is not None
    assert (best.status.id, best.merit) == ("zfs", "is made here")
    [btrfs] = [b for b in backends if b.status.id == "btrfs"]
    assert (btrfs.reason, btrfs.fix) == ("no btrfs", "mkfs.btrfs")
    assert best_of([btrfs]) is None


def proxy(name: str, address: Path, kind: str = "snapshot") -> str:
    return f'[proxy_plugins.{name}]\ntype = "{kind}"\naddress = "{address}"\n'


def test_containerds_configuration(tmp_path: Path) -> None:
    config, address = tmp_path / "config.toml", tmp_path / "lamina.sock"
    assert examine_containerd(config, str(address)).level is Level.NOTE
    config.write_text('version = 3\nimports = ["conf.d/*.toml"]\n' + proxy("other", Path("/x")))
    found = examine_containerd(config, str(address))
    assert found.level is Level.NOTE
    assert "[proxy_plugins.lamina-overlayfs]" in found.fix
    (tmp_path / "conf.d").mkdir()
    drop_in = tmp_path / "conf.d/lamina.toml"
    drop_in.write_text(proxy("lamina-native", address) + proxy("sandbox", address, "sandbox"))
    back = f'imports = ["../../{tmp_path.name}/config.toml"]\n'
    (tmp_path / "conf.d/back.toml").write_text(back)
    found = examine_containerd(config, str(address))
    assert found.level is Level.WARN
    assert found.detail.endswith(f"names lamina-native on {address}, where nobody listens")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        found = examine_containerd(config, str(address))
    assert (found.level, found.detail) == (
        Level.OK, f"{config} names lamina-native, which are served",
    )  # fmt: skip
    drop_in.write_text("not = [toml")
    found = examine_containerd(config, str(address))
    assert found.level is Level.WARN
    assert found.detail.startswith("not TOML: ")
