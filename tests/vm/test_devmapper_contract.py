"""The contract on the devmapper snapshotter, for each of its filesystems."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from lamina.core.driver import Driver
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.plugin import PLUGIN
from lamina.snapshotters.engine import Engine
from lamina.testing import SnapshotterContract
from tests.fixtures_thin_pool import ThinPool


@pytest.mark.dm(boot="contract")
@pytest.mark.root
class TestDevmapper(SnapshotterContract):
    """On a pool of each test's own; the snapshotter frees at once what is removed."""

    accesses: ClassVar = ("in-process",)  # the way in is the same for every driver
    differences: ClassVar = {"usage": "the pool counts blocks, not inodes, once they are synced"}
    filesystem = "ext4"
    size = "64MiB"
    discard_blocks = False

    @pytest.fixture(autouse=True)
    def _with_pool(self, thin_pool: ThinPool) -> None:
        self.section = DevmapperConfig(
            pool_name=thin_pool.name,
            base_image_size=self.size,
            fs_type=self.filesystem,
            discard_blocks=self.discard_blocks,
        )

    def load(self, root: Path) -> Driver:
        return PLUGIN.load(self.section, root)

    def open(self, root: Path) -> Engine:
        return Engine("contract", self.load(root), root, sync_remove=True)


class TestDevmapperXfs(TestDevmapper):
    filesystem = "xfs"
    size = "300MiB"
    discard_blocks = True
