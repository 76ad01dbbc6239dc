"""The native snapshotter's configuration: nothing but its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.plugin import SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.native"]`."""


def _load(config: NativeConfig, root: Path) -> Driver:
    from lamina.snapshotters.native.driver import NativeDriver

    return NativeDriver(root)


PLUGIN = SnapshotterPlugin(id="native", config=NativeConfig, load=_load)
