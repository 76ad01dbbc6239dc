"""The contract on every driver, with each of its options, on real mounts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from lamina.testing import SnapshotterContract

DIRECTORY_RENAMES = {
    "directory_renames": "overlayfs leaves renames of lower directories to its users (EXDEV)"
}


@pytest.mark.overlay
class TestOverlayfs(SnapshotterContract):
    plugin = "overlayfs"
    differences = DIRECTORY_RENAMES


class TestOverlayfsSyncRemove(TestOverlayfs):
    config: ClassVar = {"sync_remove": True}
    accesses = ("in-process",)


class TestOverlayfsOptions(TestOverlayfs):
    config: ClassVar = {"upperdir_label": True, "mount_options": ("metacopy=off",)}
    accesses = ("in-process",)


@pytest.mark.fuse
class TestFuseOverlayfs(SnapshotterContract):
    plugin = "fuse-overlayfs"
    differences = DIRECTORY_RENAMES
    accesses = ("in-process",)


class TestFuseOverlayfsServed(TestFuseOverlayfs):
    differences: ClassVar = {
        **DIRECTORY_RENAMES,
        "many_layers": "starts hundreds of processes; done in-process",
    }
    accesses = ("grpc",)


@pytest.mark.erofs
class TestErofs(SnapshotterContract):
    plugin = "erofs"
    differences: ClassVar = {
        **DIRECTORY_RENAMES,
        "usage": "an image is one inode, and of another size than what it was made from",
    }


@pytest.mark.erofs
class TestStargz(SnapshotterContract):
    plugin = "stargz"
    differences = DIRECTORY_RENAMES
    accesses = ("in-process",)


@pytest.mark.erofs
class TestNydus(SnapshotterContract):
    plugin = "nydus"
    differences = DIRECTORY_RENAMES


@pytest.mark.loop
class TestOverlaybd(SnapshotterContract):
    plugin = "overlaybd"
    differences = DIRECTORY_RENAMES


@pytest.mark.root
class TestNative(SnapshotterContract):
    plugin = "native"


@pytest.mark.loop
class TestBlockfile(SnapshotterContract):
    plugin = "blockfile"
    config: ClassVar = {"scratch_size": "64MiB"}
    differences: ClassVar = {
        "usage": "an image file is one inode, and grows when what is in it is synced"
    }


class TestBlockfileXfs(TestBlockfile):
    config: ClassVar = {"fs_type": "xfs", "scratch_size": "300MiB"}
    accesses = ("in-process",)


@pytest.mark.btrfs
class TestBtrfs(SnapshotterContract):
    plugin = "btrfs"
    differences: ClassVar = {"usage": "what is written counts once it has reached the disk"}

    @pytest.fixture
    def root(self, btrfs_dir: Path) -> Path:
        return btrfs_dir / "snapshotter"
