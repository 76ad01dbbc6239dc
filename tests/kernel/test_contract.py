"""The contract on every driver, with each of its options, on real mounts."""

from __future__ import annotations

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
