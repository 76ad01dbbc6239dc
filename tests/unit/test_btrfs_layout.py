from __future__ import annotations

import struct

import pytest

from lamina.linux import btrfs, btrfs_quota, btrfs_tree
from lamina.linux.btrfs import create_subvolume, destroy_subvolume
from lamina.linux.btrfs_tree import Key
from lamina.snapshotters.btrfs.device import _mount_of

WRITE, READ = 1, 2


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (btrfs.VOL_ARGS, 4096),
        (btrfs.VOL_ARGS_V2, 4096),
        (btrfs.LOOKUP_ARGS, 4096),
        (btrfs.SUBVOL_INFO, 504),
        (btrfs.FILESYSTEM_INFO, 1024),
        (btrfs_tree.HANDLE, 20),
        (btrfs_tree.SEARCH, 112),
        (btrfs_tree.HEADER, 32),
        (btrfs_tree.ROOT_REF, 18),
        (btrfs_tree.EXTENT, 21),
        (btrfs_quota.CREATE_ARGS, 16),
        (btrfs_quota.LIMIT_ARGS, 48),
        (btrfs_quota.STATUS, 24),
        (btrfs_quota.INFO, 40),
        (btrfs_quota.LIMIT, 40),
    ],
)
def test_sizes_of_structures(structure: struct.Struct, size: int) -> None:
    assert structure.size == size


@pytest.mark.parametrize(
    ("request_", "direction", "number", "size"),
    [
        (btrfs.SNAP_DESTROY, WRITE, 15, 4096),
        (btrfs_tree.TREE_SEARCH_V2, READ | WRITE, 17, 112),
        (btrfs.INO_LOOKUP, READ | WRITE, 18, 4096),
        (btrfs.SNAP_CREATE_V2, WRITE, 23, 4096),
        (btrfs.SUBVOL_CREATE_V2, WRITE, 24, 4096),
        (btrfs.SUBVOL_GETFLAGS, READ, 25, 8),
        (btrfs.SUBVOL_SETFLAGS, WRITE, 26, 8),
        (btrfs.FS_INFO, READ, 31, 1024),
        (btrfs_quota.QGROUP_CREATE, WRITE, 42, 16),
        (btrfs_quota.QGROUP_LIMIT, READ, 43, 48),
        (btrfs.GET_SUBVOL_INFO, READ, 60, 504),
    ],
)
def test_requests_are_those_of_the_header(
    request_: int, direction: int, number: int, size: int
) -> None:
    assert request_ == direction << 30 | size << 16 | 0x94 << 8 | number


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_name_that_no_subvolume_can_have(name: str) -> None:
    for call in (create_subvolume, destroy_subvolume):
        with pytest.raises(ValueError, match="is no name of a subvolume"):
            call(-1, name)
    with pytest.raises(OSError, match="File name too long"):
        create_subvolume(-1, "x" * 256)


def test_key_after_another() -> None:
    largest = (1 << 64) - 1
    assert btrfs_tree._after(Key(5, 6, 7)) == Key(5, 6, 8)
    assert btrfs_tree._after(Key(5, 6, largest)) == Key(5, 7, 0)
    assert btrfs_tree._after(Key(5, 255, largest)) == Key(6, 0, 0)


def test_mount_of_a_path() -> None:
    found = _mount_of("/proc/self")
    assert found is not None
    assert (found.point, found.type) == ("/proc", "proc")
