"""A layer's cache as it is on disk, seen without opening it: beside the process that uses it."""

from __future__ import annotations

from itertools import compress
from pathlib import Path

from lamina.errors import FormatError, NotFound
from lamina.lazy.cost import Cost, read_cost
from lamina.lazy.layer import DATA, MAP, TABLE, LayerFile, read_layer
from lamina.lazy.table import UnitTable
from lamina.lazy.trace import TRACE
from lamina.lazy.unit_list import read_units
from lamina.lazy.unit_map import HEADER_BYTES, State, unpack_header
from lamina.meta.boot import boot_id


class LayerView:
    """What was there when it was made; `close` lets go of the table.

    Attributes:
        layer: what `layer.json` says.
        table: the units.
        local: for each unit, 1 if it is in the cache and known to be whole, else 0.
        trace: what readers asked for, in order.
        cost: what it has cost.
    """

    def __init__(self, directory: Path) -> None:
        """Read what the layer in `directory` has.

        Raises:
            NotFound: there is none.
            FormatError: its table or `layer.json` is damaged.
            OSError: it cannot be read.
        """
        self.layer: LayerFile = read_layer(directory)
        try:
            self.table = UnitTable.open(directory / TABLE)
        except FileNotFoundError as error:
            raise NotFound("look at lazy layer", directory) from error
        try:
            self.local = _local(directory, self.table)
            self.trace = read_units(directory / TRACE, len(self.table))
            self.cost: Cost = read_cost(directory)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the cache file."""
        return self.table.cache_size

    @property
    def unit_bytes(self) -> int:
        """Bytes of all units."""
        return sum(self.table.cache_lengths)

    @property
    def local_bytes(self) -> int:
        """Bytes of those that are local."""
        return sum(compress(self.table.cache_lengths, self.local))

    @property
    def asked_bytes(self) -> int:
        """Bytes of the units that readers asked for."""
        return sum(map(self.table.cache_length, self.trace))

    @property
    def is_complete(self) -> bool:
        """Whether every unit is local."""
        return 0 not in self.local

    def close(self) -> None:
        """Unmap the table."""
        self.table.close()


def is_durable(directory: Path) -> bool:
    """Tell whether all of a layer is in its cache file and was synced, which no power loss undoes.

    The map is believed for its data file, as when a layer is opened; the table is not looked at.
    """
    try:
        raw = (directory / MAP).read_bytes()
        found = unpack_header(raw[:HEADER_BYTES])
        inode = (directory / DATA).stat().st_ino
    except (FileNotFoundError, FormatError):
        return False
    states = raw[HEADER_BYTES:]
    whole = len(states) == found.units and found.inode == inode
    return whole and states.count(State.DURABLE) == found.units


def _local(directory: Path, table: UnitTable) -> bytes:
    """Read the map as the next process to open it would believe it, and change nothing."""
    nothing = bytes(len(table))
    try:
        raw = (directory / MAP).read_bytes()
        data = (directory / DATA).stat()
    except FileNotFoundError:
        return nothing
    try:
        found = unpack_header(raw[:HEADER_BYTES])
    except FormatError:
        return nothing
    states = raw[HEADER_BYTES:]
    if found.table != table.digest or len(states) != len(table):
        return nothing
    if found.inode != data.st_ino or data.st_size != table.cache_size:
        return nothing
    good = {State.LOCAL, State.DURABLE} if found.boot == boot_id() else {State.DURABLE}
    return bytes(state in good for state in states)
