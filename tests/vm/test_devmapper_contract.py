"""The contract on the devmapper snapshotter, for each of its filesystems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lamina.core.driver import Driver
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.plugin import PLUGIN
from lamina.snapshotters.engine import Engine
from lamina.testing import SnapshotterContract
from tests.fixtures_thin_pool import active_pool


@pytest.mark.dm(boot="contract")
@pytest.mark.root
class TestDevmapper(SnapshotterContract):
    """On a pool of each test's own; the snapshotter frees at once what is removed."""

    accesses: ClassVar = ("in-process",)  # the way in is the same for every driver
    differences: ClassVar = {"usage": "the pool counts blocks, not inodes, once they are synced"}
    filesystem = "ext4"
    size = "64MiB"
    data_bytes = 256 << 20
    discard_blocks = False

    @pytest.fixture(autouse=True)
    def _with_pool(self, tmp_path: Path) -> Iterator[None]:
        with active_pool(tmp_path, data_bytes=self.data_bytes) as pool:
            self.section = DevmapperConfig(
                pool_name=pool.name,
                base_image_size=self.size,
                fs_type=self.filesystem,
                discard_blocks=self.discard_blocks,
            )
            yield
        (tmp_path / "pool.data").unlink()  # in memory, where the tests to come need room

    def load(self, root: Path) -> Driver:
        return PLUGIN.load(self.section, root)

    def open(self, root: Path) -> Engine:
        return Engine("contract", self.load(root), root, sync_remove=True)


@pytest.mark.dm(boot="contract xfs")
class TestDevmapperXfs(TestDevmapper):
    filesystem = "xfs"
    size = "300MiB"
    data_bytes = 512 << 20  # a layer takes 2 MiB of the log
    discard_blocks = True
