"""What of the zfs snapshotter needs no ZFS: its configuration, its names, who is skipped."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lamina.errors import SnapshotterSkipped
from lamina.linux import zfs
from lamina.snapshotters.zfs import plugin
from lamina.snapshotters.zfs.datasets import Datasets
from lamina.snapshotters.zfs.forks import Forks
from lamina.snapshotters.zfs.plugin import PLUGIN, ZfsConfig


def test_configuration_is_containerds() -> None:
    assert ZfsConfig() == ZfsConfig(root_path="")
    assert ZfsConfig().problems() == []
    assert not ZfsConfig().removes_synchronously()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOPKG, "zfsutils-linux"),
        (errno.ENOENT, "modprobe zfs"),
        (errno.EACCES, "run as root"),
    ],
)
def test_no_zfs(number: int, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(number, "as it is", "/dev/zfs")

    monkeypatch.setattr(zfs, "load", fail)
    with pytest.raises(SnapshotterSkipped) as raised:
        PLUGIN.load(ZfsConfig(), tmp_path)
    assert fix in raised.value.fix
    assert "/dev/zfs: as it is" in raised.value.reason


def test_other_errors_are_no_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(zfs, "load", fail)
    with pytest.raises(OSError, match="broken"):
        plugin.why_no_zfs()


def test_directory_that_is_on_no_zfs(tmp_path: Path) -> None:
    with pytest.raises(SnapshotterSkipped, match=str(tmp_path / "not/there")) as raised:
        plugin.dataset_at(tmp_path / "not/there")
    assert "lamina zfs setup --loop SIZE" in raised.value.fix
    assert f"mountpoint={tmp_path / 'not/there'}" in raised.value.fix


def test_fixes_are_those_of_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dataset = PLUGIN.needs
    with pytest.raises(SnapshotterSkipped) as raised:
        plugin.dataset_at(tmp_path)
    assert raised.value.fix == dataset.fix.replace("DIRECTORY", str(tmp_path))

    def fail() -> None:
        raise OSError(errno.ENXIO, "as it is", "/dev/zfs")

    monkeypatch.setattr(zfs, "load", fail)
    assert plugin.why_no_zfs() == ("the kernel has no ZFS (/dev/zfs: as it is)", module.fix)


def test_names() -> None:
    datasets = Datasets("tank/a")
    assert datasets.of(7) == "tank/a/7"
    assert datasets.snapshot_of(7) == "tank/a/7@snapshot"
    assert datasets.id_of("tank/a/7", "7") == 7
    assert datasets.id_of("tank/a/7", "") is None
    for name in ("0", "07", "x", "7/8", "-7"):
        assert datasets.id_of(f"tank/a/{name}", name) is None


def test_forks(tmp_path: Path) -> None:
    forks = Forks(tmp_path / "forks")
    assert forks.ids() == []
    assert forks.source(3) is None
    forks.forget(3)
    forks.note(3, 2)
    assert (forks.source(3), forks.ids()) == (2, [3])
    forks.forget(3)
    assert (forks.source(3), forks.ids()) == (None, [])
