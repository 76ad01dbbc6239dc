"""Files that list units: their numbers, each a little-endian u32, in an order that counts.

`trace` has those that readers asked for, `wanted` those to be fetched before all others. A number
counts once, where it comes first; what a kill or a full disk has left behind the last whole number
does not count, nor does a number that is no unit's.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

WANTED = "wanted"
_NUMBER = struct.Struct("<I")


def pack(units: Iterable[int]) -> bytes:
    """Return units as such a file has them."""
    numbers = array("I", units)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack(data: bytes, count: int) -> list[int]:
    """Return the units of a file, each once, all below `count`."""
    whole = data[: len(data) // _NUMBER.size * _NUMBER.size]
    found = dict.fromkeys(number for (number,) in _NUMBER.iter_unpack(whole))
    return [number for number in found if number < count]


def read_units(path: Path, count: int) -> list[int]:
    """Return the units of the file at `path`; none where there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return unpack(path.read_bytes(), count)
    except FileNotFoundError:
        return []


def write_units(path: Path, units: Iterable[int]) -> None:
    """Put a file in the place of the one at `path`, whole or not at all; syncs nothing.

    Raises:
        OSError: it cannot be written; the one that was there stays.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(pack(units))
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def stretches(units: Iterable[int]) -> Iterator[range]:
    """Yield units in their order, those together that follow each other by number."""
    start = stop = -1
    for number in units:
        if number != stop:
            if start >= 0:
                yield range(start, stop)
            start = number
        stop = number + 1
    if start >= 0:
        yield range(start, stop)
