"""What a layer has cost until now: the file `cost`, which outlives the processes that write it.

96 bytes, little-endian: magic, version, 0, then ten numbers of eight bytes. It is written after
each request and each wait, and never synced.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

COST = "cost"
MAGIC = b"LaminaCO"
VERSION = 1
_FILE = struct.Struct("<8sII6Qd3Q")
assert _FILE.size == 96
"""Magic, version, 0, and a `Cost`."""


class Cost(NamedTuple):
    """Sums over all processes that have had a layer open.

    Attributes:
        requests: range requests to the source.
        fetched_bytes: source bytes that they brought.
        written_bytes: decoded and verified bytes written to the cache.
        fills: times that a reader found bytes missing.
        waits: those of them for which a request was under way already.
        failures: units that did not come.
        wait_seconds: how long readers waited, all together.
        local_bytes: in the cache now, by the last process that had it open.
        unit_bytes: `local_bytes` of a complete cache.
        cache_bytes: size of the cache file.
    """

    requests: int = 0
    fetched_bytes: int = 0
    written_bytes: int = 0
    fills: int = 0
    waits: int = 0
    failures: int = 0
    wait_seconds: float = 0.0
    local_bytes: int = 0
    unit_bytes: int = 0
    cache_bytes: int = 0


NOTHING = Cost()


class CostFile:
    """The file, for one process that writes it; for one thread at a time.

    Args:
        fd: of the file, open for reading and writing; stays the caller's.
        path: for messages.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._cost = unpack(os.pread(fd, _FILE.size, 0))
        self._failed = False

    def set(self, *, local_bytes: int, unit_bytes: int, cache_bytes: int) -> None:
        """Say what is there and what there could be, in bytes."""
        self._cost = self._cost._replace(
            local_bytes=local_bytes, unit_bytes=unit_bytes, cache_bytes=cache_bytes
        )
        self._write()

    def add(self, amounts: Mapping[str, float]) -> None:
        """Add to the numbers of these names; others are passed over."""
        known = {name: amount for name, amount in amounts.items() if name in Cost._fields}
        if known:
            sums = {n: max(0, getattr(self._cost, n) + amount) for n, amount in known.items()}
            self._cost = self._cost._replace(**sums)
            self._write()

    def _write(self) -> None:
        """Write it; what cannot be written is in the next."""
        try:
            os.pwrite(self._fd, pack(self._cost), 0)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("cannot note costs: %s", error, extra={"path": str(self._path)})
            self._failed = True


def pack(cost: Cost) -> bytes:
    """Return the bytes of the file."""
    return _FILE.pack(MAGIC, VERSION, 0, *cost)


def unpack(data: bytes) -> Cost:
    """Return what the file says; nothing where it is damaged, or of another version."""
    if len(data) != _FILE.size:
        return Cost()
    magic, version, _, *numbers = _FILE.unpack(data)
    return Cost(*numbers) if (magic, version) == (MAGIC, VERSION) else Cost()


def read_cost(directory: Path) -> Cost:
    """Return what the layer in a directory has cost; nothing where it was never opened.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return unpack((directory / COST).read_bytes())
    except FileNotFoundError:
        return Cost()
