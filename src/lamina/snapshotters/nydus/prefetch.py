"""What a bootstrap wants to be fetched first."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from lamina.formats.rafs.flags import ChunkFlags
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.units import Layout, inodes
from lamina.lazy.layer import TABLE
from lamina.lazy.table import UnitTable
from lamina.lazy.unit_list import WANTED, write_units

Place = tuple[int, int]
"""The first byte of a device, and the one behind the last."""


def wanted_places(bootstrap: Bootstrap, layout: Layout) -> dict[int, list[Place]]:
    """Return what the prefetch table names, by the number of its device, in the table's order.

    A directory stands for all that is below it.
    """
    found: dict[int, list[Place]] = {}
    for wanted in bootstrap.prefetch:
        for inode in inodes(wanted):
            for _, chunk in inode.chunks:
                if chunk.flags & ChunkFlags.HOLE:
                    continue
                device, place = layout.places[chunk]
                end = place + chunk.uncompressed_size
                found.setdefault(device, []).append((place, end))
    return found


def want_first(cache: Path, places: Iterable[Place]) -> None:
    """Note which units of a cache have these bytes."""
    with closing(UnitTable.open(cache / TABLE)) as table:
        units = dict.fromkeys(unit for place in places for unit in table.find(*place))
    write_units(cache / WANTED, units)
