"""What a bootstrap wants to be fetched first."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from lamina.formats.rafs.flags import ChunkFlags
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.units import DeviceLayout, Layout, inodes


def wanted_units(bootstrap: Bootstrap, layout: Layout) -> dict[int, list[int]]:
    """Return the units that the prefetch table names, by the number of their device, in its order.

    A directory stands for all that is below it.
    """
    starts = [[unit.cache_offset for unit in device.units] for device in layout.devices]
    found: dict[int, dict[int, None]] = {}
    for wanted in bootstrap.prefetch:
        for inode in inodes(wanted):
            for _, chunk in inode.chunks:
                if chunk.flags & ChunkFlags.HOLE:
                    continue
                device, place = layout.places[chunk]
                unit = bisect_right(starts[device - 1], place) - 1
                found.setdefault(device, {})[unit] = None
    return {device: list(units) for device, units in found.items()}


def content_bytes(devices: Sequence[DeviceLayout]) -> int:
    """Return the bytes that all units of devices have."""
    return sum(unit.cache_length for device in devices for unit in device.units)
