"""Images that are sealed by fs-verity, which the kernel of the machine that has ZFS has too."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.labels import SNAPSHOT_REF
from lamina.errors import FailedPrecondition
from lamina.mount import temp_mount, unmount, unmount_recursive
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.erofs.driver import ErofsDriver
from lamina.snapshotters.erofs.plugin import PLUGIN, ErofsConfig

pytestmark = [pytest.mark.zfs, pytest.mark.root]

CONTENT = b"what is read of this is checked" * 1000


@contextmanager
def mounted(disk: Path, point: Path) -> Iterator[Path]:
    subprocess.run(("mount", "-o", "loop", disk, point), check=True)
    try:
        yield point / "root"
    finally:
        unmount_recursive(point)
        unmount(point)


def opened(root: Path, *, sealed: bool) -> Engine:
    driver = PLUGIN.load(ErofsConfig(enable_fsverity=sealed, set_immutable=sealed), root)
    assert isinstance(driver, ErofsDriver)
    return Engine("erofs", driver, root, sync_remove=True)


def commit(engine: Engine, name: str) -> None:
    [mount] = engine.prepare("key", labels={SNAPSHOT_REF: name})
    (Path(mount.source) / "file").write_bytes(CONTENT)
    engine.commit(name, "key")


def test_sealed_images(tmp_path: Path) -> None:
    subprocess.run(("modprobe", "-a", "erofs", "overlay"), check=True)
    disk, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(("mkfs.ext4", "-q", "-O", "verity", "-b", "4096", disk), check=True)
    with mounted(disk, point) as root:
        with opened(root, sealed=False) as engine:
            commit(engine, "of before")
        with opened(root, sealed=True) as engine:
            with pytest.raises(FailedPrecondition, match="pull them again, or set enable_fsverity"):
                engine.view("view", "of before")
            engine.remove("of before")
            commit(engine, "layer")
            with temp_mount(engine.view("view", "layer"), dir=tmp_path) as top:
                assert (top / "file").read_bytes() == CONTENT
            [image] = root.glob("snapshots/*/layer.erofs")
            with pytest.raises(PermissionError):
                image.open("r+b")
            assert engine.fsck() == []
    _damage(disk)
    with mounted(disk, point) as root, opened(root, sealed=True) as engine:
        mounts = engine.mounts("view")
        expected = pytest.raises(OSError, match="Input/output error")
        with temp_mount(mounts, dir=tmp_path) as top, expected:
            (top / "file").read_bytes()
        engine.remove("view")
        engine.remove("layer")
        assert not list(root.glob("snapshots/*"))


def _damage(disk: Path) -> None:
    """Change the file where it is in the image, and where it was written before."""
    data = disk.read_bytes()
    disk.write_bytes(data.replace(b"is checked", b"is changed"))
