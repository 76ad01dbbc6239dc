"""The parts of a blob that say where everything is, kept beside its layer.

A device is made, and made again by each worker, of the indexes of all its layers. Nothing of them
is asked for twice: a `Keeper` keeps what is read through it, and a `KeptSource` has it ready. The
file is a head of three words (magic, version, count), two words for each part (its byte of the
blob, its length), and the parts; all little-endian, of 8 bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import DataLoss, FormatError

_FORMAT = "kept parts"
_HEAD = struct.Struct("<8sQQ")
_PLACE = struct.Struct("<QQ")
_MAGIC = b"LaminaKP"
_VERSION = 1
_START, _END = 4096, 256 << 10
"""Bytes of a blob's start and end that are read at once: mostly that is all."""


class _Part(NamedTuple):
    offset: int
    data: bytes


class Keeper:
    """A source that keeps what is read of another; for one thread.

    Reads its start and its end at once, side by side.

    Raises:
        Unavailable: they cannot be had just now.
    """

    def __init__(self, source: RangeSource) -> None:
        self._source = source
        self.size = source.size
        self._parts = list(map(_Part._make, _ends(source)))

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on, and keep them.

        Raises:
            OutOfRange: the range does not lie inside the source.
            Unavailable: the bytes cannot be had just now.
        """
        for part in self._parts:
            if part.offset <= offset and offset + length <= part.offset + len(part.data):
                return part.data[offset - part.offset :][:length]
        data = self._source.read_at(offset, length)
        self._parts.append(_Part(offset, data))
        return data

    def write(self, path: Path) -> None:
        """Keep it in a file.

        Raises:
            OSError: it cannot be written.
        """
        parts = sorted(self._parts)
        with path.open("wb") as out:
            out.write(_HEAD.pack(_MAGIC, _VERSION, len(parts)))
            out.writelines(_PLACE.pack(part.offset, len(part.data)) for part in parts)
            out.writelines(part.data for part in parts)


class KeptSource:
    """A source some of whose parts are here; safe for threads as far as the other is.

    Args:
        path: what a `Keeper` has written.
        source: the whole.

    Raises:
        DataLoss: there is no such file.
        FormatError: it is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, source: RangeSource) -> None:
        self.size = source.size
        self._source = source
        self._parts = _read(path)
        self._starts = [part.offset for part in self._parts]

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the source.
            Unavailable: the bytes cannot be had just now.
        """
        # Parts may lie over each other: the last that begins early enough need not be the one.
        for number in range(bisect_right(self._starts, offset) - 1, -1, -1):
            start, data = self._parts[number]
            if offset + length <= start + len(data):
                return data[offset - start :][:length]
        return self._source.read_at(offset, length)

    def forget(self) -> None:
        """Let go of the parts, once what they say is known."""
        self._parts, self._starts = [], []


def _ends(source: RangeSource) -> list[tuple[int, bytes]]:
    size = source.size
    if size <= _START + _END:
        return [(0, source.read_at(0, size))]
    # The deadline of whoever waits holds in the other thread, too.
    context = copy_context()
    with ThreadPoolExecutor(1, "overlaybd-open") as threads:
        end = threads.submit(context.run, source.read_at, size - _END, _END)
        start = source.read_at(0, _START)
        return [(0, start), (size - _END, end.result())]


def _read(path: Path) -> list[_Part]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = "pull the image again"
        raise DataLoss("read what is kept of an overlaybd layer", path, hint=hint) from error
    if len(data) < _HEAD.size:
        raise _damaged(path, 0, "a head", f"{len(data)} bytes")
    magic, version, count = _HEAD.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise _damaged(path, 0, f"{_MAGIC!r} and version {_VERSION}", f"{magic!r} and {version}")
    position = _HEAD.size + count * _PLACE.size
    if position > len(data):
        raise _damaged(path, 16, "places of all parts", f"{count} parts in {len(data)} bytes")
    parts = []
    for offset, length in _PLACE.iter_unpack(data[_HEAD.size : position]):
        parts.append(_Part(offset, data[position : position + length]))
        position += length
    if position != len(data):
        raise _damaged(path, 16, f"{position} bytes", f"{len(data)} bytes")
    return parts


def _damaged(path: Path, offset: int, expected: str, got: str) -> FormatError:
    return FormatError(_FORMAT, offset, expected=expected, got=got, source=path)
