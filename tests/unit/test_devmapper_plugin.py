from __future__ import annotations

from pathlib import Path

import pytest

from lamina.errors import SnapshotterSkipped
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.plugin import PLUGIN


def test_without_configuration_it_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(SnapshotterSkipped, match="devmapper not configured") as failure:
        PLUGIN.load(DevmapperConfig(), tmp_path / "root")
    assert "lamina devmapper setup --loop" in failure.value.fix
    assert not (tmp_path / "root").exists()


def test_without_mkfs_it_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = DevmapperConfig(pool_name="pool", base_image_size="1g", fs_type="xfs")
    with pytest.raises(SnapshotterSkipped, match=r"mkfs\.xfs is not installed: .*xfsprogs"):
        PLUGIN.probe(config, tmp_path)
