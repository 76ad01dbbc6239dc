"""The nydus snapshotter's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.erofs_support import check, loaded
from lamina.snapshotters.lazy_plugin import NEEDS, LazyConfig, lazy_arguments, probe
from lamina.snapshotters.plugin import SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.nydus.driver import NydusDriver

ID = "nydus"


@dataclass(frozen=True, slots=True, kw_only=True)
class NydusConfig(LazyConfig):
    """`[plugins."io.containerd.snapshotter.v1.nydus"]`: the keys that lazy snapshotters have."""


def _load(config: NydusConfig, root: Path) -> Driver:
    return loaded(ID, root, lambda: _driver(config, root))


def _driver(config: NydusConfig, root: Path) -> NydusDriver:
    from lamina.snapshotters.nydus.driver import NydusDriver

    return NydusDriver(root, prefetches=not config.noprefetch, **lazy_arguments(config, root))


def _check(config: NydusConfig, directory: Path) -> None:
    check(ID, directory)


def _probe(config: NydusConfig, directory: Path) -> None:
    probe(ID, config, directory)


PLUGIN = SnapshotterPlugin(
    id=ID,
    config=NydusConfig,
    load=_load,
    probe=_probe,
    check=_check,
    needs=NEEDS,
    rank=19,
    merit="Nydus images run before they are fetched; others are unpacked",
)
