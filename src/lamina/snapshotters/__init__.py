"""Snapshotters: the engine, and one package per driver.

Drivers are found by id: `find` imports a driver's plugin module when it is asked for, no sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from lamina.errors import LaminaError, NotFound
from lamina.snapshotters.plugin import AnyPlugin, SnapshotterPlugin

ENTRY_POINTS = "lamina.snapshotters"

DRIVERS = {
    "native": "lamina.snapshotters.native.plugin",
    "overlayfs": "lamina.snapshotters.overlayfs.plugin",
}
"""Module of each of Lamina's own drivers, by id."""


def find(id: str) -> AnyPlugin:
    """Return the plugin of that id: Lamina's own, or else one that another package brings.

    Raises:
        NotFound: nobody has a snapshotter of that id.
        LaminaError: an entry point of that name is broken.
    """
    if id in DRIVERS:
        return _checked(id, import_module(DRIVERS[id]).PLUGIN)
    from importlib.metadata import entry_points  # its import costs 20 ms, and is rarely needed

    for point in entry_points(group=ENTRY_POINTS, name=id):
        try:
            return _checked(id, point.load())
        except (ImportError, AttributeError) as error:
            raise LaminaError(f"load snapshotter {id} from {point.value}: {error}") from error
    raise NotFound("snapshotter", id, hint="`lamina plugins ls` lists those there are")


def third_party() -> Iterable[str]:
    """Return the ids of the snapshotters that other packages bring, sorted."""
    from importlib.metadata import entry_points

    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - DRIVERS.keys())


def _checked(id: str, plugin: object) -> AnyPlugin:
    if not isinstance(plugin, SnapshotterPlugin) or plugin.id != id:
        raise LaminaError(
            f"load snapshotter {id}: its entry point names no SnapshotterPlugin of it"
        )
    return plugin
