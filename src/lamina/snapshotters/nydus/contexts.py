"""Where in a gzip layer decompression can begin: a file beside the cache of a ZRAN blob.

Little-endian: the number of contexts; for each 40 bytes, by ascending place in the layer; then
their dictionaries. It needs no checksum: what it leads to is verified by the chunks' digests.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from lamina.errors import DataLoss
from lamina.formats.rafs.zran import ZranContext, inflate
from lamina.lazy.codecs import Buffer, decode_alone
from lamina.lazy.unit import Codec, Unit

CONTEXTS = "contexts"
_COUNT = struct.Struct("<Q")
_CONTEXT = struct.Struct("<QQQIIIBB2x")
assert _CONTEXT.size == 40
"""Place and bytes in the layer, place and bytes of the tar, place and bytes of the dictionary,
the byte before, bits of it. Places come first; that of a dictionary counts from the first one."""


def write_contexts(path: Path, contexts: Iterable[ZranContext]) -> None:
    """Write a file of those that units have."""
    found = sorted({context.in_offset: context for context in contexts}.items())
    with path.open("wb") as out:
        out.write(_COUNT.pack(len(found)))
        place = 0
        for _, one in found:
            size = len(one.dictionary)
            sizes = (one.in_size, one.out_size, size, one.byte, one.bits)
            out.write(_CONTEXT.pack(one.in_offset, one.out_offset, place, *sizes))
            place += size
        for _, one in found:
            out.write(one.dictionary)


class Contexts:
    """The contexts of a blob, by their place in the layer."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataLoss: it is gone or damaged.
        """
        try:
            raw = memoryview(path.read_bytes())
            (count,) = _COUNT.unpack_from(raw)
            end = _COUNT.size + count * _CONTEXT.size
            self._rows = list(_CONTEXT.iter_unpack(raw[_COUNT.size : end]))
        except (OSError, struct.error) as error:
            raise DataLoss(f"read contexts of a gzip layer: {error}", path) from error
        self._places = [row[0] for row in self._rows]
        self._dictionaries = raw[end:]
        self._path = path

    def decode(self, unit: Unit, data: Buffer, length: int) -> Buffer:
        """Return the first `length` bytes of a unit; see `lamina.lazy.codecs.Decoder`.

        Raises:
            DataLoss: there is no context for it, or its bytes are damaged.
        """
        if unit.codec is not Codec.ZRAN:
            return decode_alone(unit, data, length)
        decoded = inflate(self._context(unit.source_offset), data)
        if len(decoded) < length:
            raise DataLoss(f"inflate {length} bytes: there are {len(decoded)}", self._path)
        return memoryview(decoded)[:length]

    def _context(self, place: int) -> ZranContext:
        index = bisect_left(self._places, place)
        if index == len(self._places) or self._places[index] != place:
            raise DataLoss(f"find the context for byte {place}", self._path)
        in_offset, out_offset, at, in_size, out_size, size, byte, bits = self._rows[index]
        dictionary = self._dictionaries[at : at + size]
        return ZranContext(in_offset, in_size, out_offset, out_size, dictionary, byte, bits)
