"""Files beside overlaybd's layers: gzip indexes, traces with lists of paths, `config.v1.json`.

Checksums and sizes are made anew for each input.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.crc32c import crc32c
from lamina.formats.gzip_index import HEADER, read_gzip_index
from lamina.formats.gzip_source import GzipSource
from lamina.formats.lsmt.layout import SECTOR
from lamina.formats.lsmt.reader import read_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd.device_config import (
    DeviceConfig,
    Download,
    Lower,
    Upper,
    read_device_config,
    write_device_config,
)
from lamina.formats.overlaybd.places import device_ranges
from lamina.formats.overlaybd.priorities import MAX_SIZE, read_priorities, write_priorities
from lamina.formats.overlaybd.trace import Access, is_trace, read_trace, write_trace
from tests.erofs import Bytes
from tests.fuzz.target import Target
from tests.gzip_index import make_index, pack_index, points_of
from tests.lsmt import ZERO, make_layer, rows
from tests.rafs import noise

_TAR = noise(20_000).hex().encode()
_MOST = 1 << 22


def _indexes() -> Iterator[bytes]:
    """Yield the size of an index in 24 bits, it, and the blob."""
    blob = gzip.compress(_TAR, 6)
    points = points_of(blob, 1 << 13)
    windows = b"".join(point.window.rjust(1 << 15, b"\0") for point in points[:2])
    entries = [
        (point.out_offset, point.in_offset, 333 + (number << 15), point.bits, 1 << 15)
        for number, point in enumerate(points[:2])
    ]
    plain = pack_index(entries, windows[:65536], {"size": len(_TAR)}, compress=False)
    for index in (make_index(blob, len(_TAR), 1 << 13), plain):
        yield len(index).to_bytes(3, "little") + index + blob


def _gzip(data: bytes) -> None:
    size = 3 + int.from_bytes(data[:3], "little")
    index, blob = bytearray(data[3:size]), data[size:]
    if len(index) < HEADER.size:
        return
    index[33:41] = len(blob).to_bytes(8, "little")
    index[41:49] = len(index).to_bytes(8, "little")
    index[329:333] = crc32c(0, bytes(index[:329])).to_bytes(4, "little")
    with contextlib.suppress(FormatError):
        found = read_gzip_index(Bytes(index))
        source = GzipSource(Bytes(blob), found)
        for number in range(min(len(found), 8)):
            span = found.span(number)
            assert 0 <= span.in_offset <= span.in_offset + span.in_size <= len(blob)
            assert 0 <= span.out_offset <= span.out_offset + span.out_size <= source.size
            if 0 < span.out_size <= _MOST:
                _check_span(source, span.out_offset, span.out_size)


def _check_span(source: GzipSource, offset: int, length: int) -> None:
    with contextlib.suppress(FormatError):
        body = source.read_at(offset, length)
        assert len(body) == length
        assert source.read_at(offset + length // 2, length - length // 2) == body[length // 2 :]


def _traces() -> Iterator[bytes]:
    yield write_trace([Access(0, 4096, 1024), Access(1, 5000, 100_000), Access(7, 0, 1)])
    yield b"/usr/bin/\n  etc/*\n/a/b/c\n"


def _stack() -> Stack:
    lower = make_layer(noise(9 * SECTOR), rows((0, 4, 10), (20, 4, 8), (30, 2, 14), (95, 9, 8)))
    upper = make_layer(
        noise(9 * SECTOR), rows((1, 1, 8), (2, 1, 8 | ZERO), (50, 1, 9), (51, 2, 10))
    )
    return Stack([read_layer(Bytes(layer)) for layer in (lower, upper)])


_STACK = _stack()


def _trace(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        if not is_trace(data):
            found = read_priorities(data)
            # A list may grow as it is written: a slash goes before each path.
            if len(data) < MAX_SIZE // 4:
                with contextlib.suppress(InvalidArgument):
                    assert read_priorities(write_priorities(found)) == found
            return
        body = data[24 : 24 + (len(data) - 24) // 24 * 24] if len(data) > 24 else b""
        head = data[:8] + len(body).to_bytes(8, "little") + crc32c(0, body).to_bytes(4, "little")
        accesses = read_trace(head.ljust(20, b"\0") + b"\0" * 4 + body)
        assert read_trace(write_trace(accesses)) == accesses
        for access in accesses:
            _check_ranges(access)


def _check_ranges(access: Access) -> None:
    for offset, length in device_ranges(_STACK, [access]):
        for extent in _STACK.lookup(offset, length):
            assert extent.layer == access.layer
            assert access.place <= extent.place
            assert extent.place + extent.length <= access.place + access.length


def _configs() -> Iterator[bytes]:
    lowers = (Lower(file="/a"), Lower(digest="sha256:0", size=5, dir="/b", gzip_index="/c"))
    yield write_device_config(DeviceConfig(repo_blob_url="https://a/v2/b/blobs", lowers=lowers))
    upper = Upper(index="/a", data="/b", vsize=64)
    yield write_device_config(
        DeviceConfig(upper=upper, acceleration_layer=True, download=Download(delay=5))
    )


def _config(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        found = read_device_config(data)
        assert read_device_config(write_device_config(found)) == found


TARGETS = {
    "gzip-index": Target(_indexes, _gzip),
    "access-trace": Target(_traces, _trace),
    "device": Target(_configs, _config),
}
