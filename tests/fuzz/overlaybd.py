"""ZFiles and LSMT layers: whatever is read lies inside of the file, and what shows is what is said.

Checksums are made anew for each input: `_resealed`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from lamina.errors import FormatError
from lamina.formats.crc32c import crc32c
from lamina.formats.lsmt.layout import SECTOR, About
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.reader import Layer, open_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.warp import Joined, open_warp
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.zfile.layout import SLOT, Algorithm, digest_of
from lamina.formats.zfile.reader import read_zfile
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from tests.erofs import Bytes
from tests.fuzz.target import Target
from tests.lsmt import ZERO, make_layer, rows
from tests.rafs import noise

_DATA = noise(6 * SECTOR)
_MOST = 1 << 22


def _zfiles() -> Iterator[bytes]:
    for algorithm in Algorithm:
        for complete in (True, False):
            out = io.BytesIO()
            options = ZFileOptions(algorithm, checksums=False, complete_header=complete)
            writer = ZFileWriter(out, options)
            writer.write(noise(4096) + b"ab" * 3000)
            writer.close()
            yield out.getvalue()


def _resealed(data: bytes) -> bytes:
    """Return a ZFile whose header, jump table and trailer have the CRCs of what they are."""
    raw = bytearray(data)
    for at in (len(raw) - SLOT, 0):
        slot = raw[at : at + SLOT]
        index, count = (int.from_bytes(slot[place : place + 8], "little") for place in (40, 48))
        table = bytes(raw[index : index + 4 * count]) if index + 4 * count <= len(raw) else b""
        slot[64:68] = crc32c(0, table).to_bytes(4, "little")
        slot[28:32] = digest_of(bytes(slot)).to_bytes(4, "little")
        raw[at : at + SLOT] = slot
    return bytes(raw)


def _zfile(data: bytes) -> None:
    if len(data) < 2 * SLOT:
        return
    with contextlib.suppress(FormatError):
        found = read_zfile(Bytes(_resealed(data)))
        size = min(found.size, _MOST)
        body = found.read_at(0, size)
        assert len(body) == size
        for offset in range(0, size, 5000):
            length = min(6000, size - offset)
            assert found.read_at(offset, length) == body[offset : offset + length]


def _layers() -> Iterator[bytes]:
    """Yield the sizes of a lower layer in 16 bits, and that and an upper one."""
    lower = make_layer(_DATA, rows((0, 6, 8), (90, 2, 9)))
    upper = make_layer(_DATA, rows((1, 1, 9 | ZERO), (3, 1, 13), (91, 3, 8)), 0)
    for one, two in ((lower, upper), (upper, lower)):
        yield len(one).to_bytes(2, "little") + one + two


def _two(data: bytes) -> None:
    size = 2 + int.from_bytes(data[:2], "little")
    with contextlib.suppress(FormatError):
        _use([open_layer(Bytes(part)) for part in (data[2:size], data[size:])])


def _use(layers: list[Layer]) -> None:
    stack = Stack(layers)
    end = 0
    shown: list[Extent] = []
    for extent in stack.extents():
        assert extent.offset >= end
        end = extent.offset + extent.length
        assert end <= stack.size
        if sum(each.length for each in shown) < _MOST:
            shown.append(extent)
            _check(extent, stack)
    out = io.BytesIO()
    write_layer(out, shown, [layer.source for layer in layers], About(stack.size))
    again = Stack([open_layer(Bytes(out.getvalue()))])
    for extent in shown:
        found = stack.read_at(extent.offset, min(extent.length, _MOST))
        assert again.read_at(extent.offset, len(found)) == found


def _check(extent: Extent, stack: Stack) -> None:
    """Compare what shows with what the uppermost layer says of it that says anything."""
    for at in (extent.offset, extent.offset + extent.length - SECTOR):
        (shown,) = stack.lookup(at, SECTOR)
        told = [layer.mappings.lookup(at, SECTOR)[0] for layer in stack.layers]
        number = max(number for number, one in enumerate(told) if one.layer != HOLE)
        if told[number].layer == ZEROS:
            assert shown.layer == ZEROS
        else:
            assert (shown.layer, shown.place) == (number, told[number].place)


def _warps() -> Iterator[bytes]:
    """Yield the sizes of a layer of TurboOCI in 16 bits, that layer, and the tar it leads to."""
    index = ((0, 2, 8), (2, 2, 1 << 56 | 1), (5, 1, 10 | ZERO), (6, 2, 1 << 56 | 4), (9, 1, 10))
    for above in (0, 3 << 56):
        moved = ((at, length, place + above) for at, length, place in index)
        meta = make_layer(_DATA, rows(*moved))
        yield len(meta).to_bytes(2, "little") + meta + noise(5 * SECTOR + 9)


def _warp(data: bytes) -> None:
    size = 2 + int.from_bytes(data[:2], "little")
    with contextlib.suppress(FormatError):
        layer = open_warp(Bytes(data[2:size]), Bytes(data[size:]))
        assert isinstance(layer.source, Joined)
        for extent in layer.mappings.extents():
            if extent.layer != ZEROS:
                parts = list(layer.source.parts(extent.place, extent.length))
                assert sum(part.length for part in parts) == extent.length
                assert len({part.source for part in parts if part.source}) == 1
        _use([layer])


TARGETS = {
    "zfile": Target(_zfiles, _zfile),
    "lsmt": Target(_layers, _two),
    "warp": Target(_warps, _warp),
}
