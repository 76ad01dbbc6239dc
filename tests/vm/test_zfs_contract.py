"""The contract on the zfs snapshotter."""

from __future__ import annotations

from typing import ClassVar

import pytest

from lamina.testing import SnapshotterContract

ENGINES = (
    *("update", "walk", "stat_in_walk", "labels", "odd_keys", "errors", "close_twice"),
    *("stat_active", "stat_committed", "transitivity", "prepare_and_view_twice"),
)
"""Checks in which drivers have no part: others show that they hold."""


@pytest.mark.zfs
@pytest.mark.root
@pytest.mark.usefixtures("dataset")
class TestZfs(SnapshotterContract):
    """On a dataset of each test's own."""

    plugin = "zfs"
    accesses: ClassVar = ("in-process",)  # the way in is the same for every driver
    differences: ClassVar = {
        "usage": "ZFS counts no inodes, and blocks once they are on disk",
        "many_layers": "takes minutes on processors that are emulated; test_zfs.py has a chain",
        **dict.fromkeys(ENGINES, "the engine's own; too slow on processors that are emulated"),
    }
