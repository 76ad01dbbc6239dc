"""The contract on every driver, with each of its options, on real mounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Driver
from lamina.core.snapshot import Snapshotter
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.plugin import PLUGIN as NATIVE
from lamina.snapshotters.native.plugin import NativeConfig
from lamina.snapshotters.overlayfs.plugin import PLUGIN as OVERLAYFS
from lamina.snapshotters.overlayfs.plugin import OverlayConfig
from tests.contract import suite

Factory = Callable[[Path], Engine]


def _overlayfs(config: OverlayConfig) -> Factory:
    def factory(root: Path) -> Engine:
        driver: Driver = OVERLAYFS.load(config, root)
        return Engine("overlayfs", driver, root, sync_remove=config.removes_synchronously())

    return factory


def _native(root: Path) -> Engine:
    return Engine("native", NATIVE.load(NativeConfig(), root), root)


FACTORIES: dict[str, Factory] = {
    "overlayfs": _overlayfs(OverlayConfig()),
    "overlayfs-sync-remove": _overlayfs(OverlayConfig(sync_remove=True)),
    "overlayfs-options": _overlayfs(
        OverlayConfig(upperdir_label=True, mount_options=("metacopy=off",))
    ),
    "native": _native,
}
SKIPPED = {
    *((name, "directory_renames") for name in FACTORIES if name.startswith("overlayfs")),
    ("native", "remapped_ids"),
}
COMBINATIONS = [
    pytest.param(factory, check, id=f"{name}-{check.__name__}")
    for name, factory in FACTORIES.items()
    for check in suite.CHECKS
    if (name, check.__name__) not in SKIPPED
]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "work"
    directory.mkdir()
    yield directory


@pytest.mark.root
@pytest.mark.overlay
@pytest.mark.parametrize(("factory", "check"), COMBINATIONS)
def test_contract(factory: Factory, check: suite.Check, tmp_path: Path, work: Path) -> None:
    root = tmp_path / "sn"
    with factory(root) as snapshotter:
        check(snapshotter, work)
    with factory(root) as reopened:
        assert reopened.fsck() == []
        remove_all(reopened)
        reopened.cleanup()
        assert not reopened.pending()
        assert list((root / "snapshots").iterdir()) == []


def remove_all(snapshotter: Snapshotter) -> None:
    """Remove every snapshot, children before their parents."""
    left = {info.name: info.parent for info in snapshotter.walk()}
    while left:
        for key in left.keys() - set(left.values()):
            snapshotter.remove(key)
            del left[key]
