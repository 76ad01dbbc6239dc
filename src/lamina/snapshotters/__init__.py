"""Snapshotters: the engine, and one package per driver.

Drivers are found by id: `find` imports a driver's plugin module when it is asked for, no sooner.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lamina.errors import Internal, NotFound
from lamina.snapshotters.entrypoints import GROUP, entry_points
from lamina.snapshotters.plugin import AnyPlugin, SnapshotterPlugin

DRIVERS = {
    "aufs": "lamina.snapshotters.aufs.plugin:PLUGIN",
    "blockfile": "lamina.snapshotters.blockfile.plugin:PLUGIN",
    "btrfs": "lamina.snapshotters.btrfs.plugin:PLUGIN",
    "devmapper": "lamina.snapshotters.devmapper.plugin:PLUGIN",
    "erofs": "lamina.snapshotters.erofs.plugin:PLUGIN",
    "fuse-overlayfs": "lamina.snapshotters.fuse_overlayfs.plugin:PLUGIN",
    "native": "lamina.snapshotters.native.plugin:PLUGIN",
    "nydus": "lamina.snapshotters.nydus.plugin:PLUGIN",
    "overlaybd": "lamina.snapshotters.overlaybd.plugin:PLUGIN",
    "overlayfs": "lamina.snapshotters.overlayfs.plugin:PLUGIN",
    "stargz": "lamina.snapshotters.stargz.plugin:PLUGIN",
    "zfs": "lamina.snapshotters.zfs.plugin:PLUGIN",
}
"""Where the plugin of each of Lamina's own drivers is, by id."""


def find(id: str) -> AnyPlugin:
    """Return the plugin of that id: Lamina's own, or else one that another package brings.

    Raises:
        NotFound: nobody has a snapshotter of that id.
        Internal: another package's plugin is broken.
    """
    if id in DRIVERS:
        own: AnyPlugin = _import(DRIVERS[id])
        return own
    target = entry_points().get(id)
    if target is None:
        raise NotFound("find snapshotter", id, hint="`lamina plugins ls` lists those there are")
    try:
        plugin: object = _import(target)
    except (Exception, SystemExit) as error:  # another package's module may raise anything
        raise Internal(
            f"import snapshotter {id} from {target}: {type(error).__name__}: {error}",
            hint="repair or uninstall the package that provides it",
        ) from error
    if not isinstance(plugin, SnapshotterPlugin) or plugin.id != id:
        raise Internal(
            f"import snapshotter {id} from {target}: it is no SnapshotterPlugin of that id",
            hint=f"correct the entry point group {GROUP} of the package that provides it",
        )
    return plugin


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def third_party() -> list[str]:
    """Return the ids of the snapshotters that other packages bring, sorted."""
    return sorted(entry_points().keys() - DRIVERS.keys())
