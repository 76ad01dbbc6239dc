"""The bytes of a device, put together from the blobs of its layers.

A range of a device is made of pieces of several layers. Those of one layer that lie near each other
are one request; requests go out side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import OutOfRange
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.stack import Stack
from lamina.formats.zfile.reader import ZFile

_GAP = 64 << 10
"""Bytes of a blob between two pieces that are fetched with them rather than asking twice."""
_THREADS = 8


class _Request(NamedTuple):
    """Pieces of one layer that are fetched at once.

    Attributes:
        layer: its number.
        pieces: numbers in the list of all pieces, ascending.
        start: byte of the layer's file that the first begins at.
        stop: byte that the last ends before.
    """

    layer: int
    pieces: list[int]
    start: int
    stop: int


class DeviceSource:
    """A device as a source; safe for threads as far as the sources of its layers are.

    Args:
        stack: the layers.
        size: bytes: the device's, or more, which are zeros.
        close: is called when the source is not needed any more.
    """

    def __init__(
        self,
        stack: Stack,
        size: int,
        *,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._stack = stack
        self.size = size
        self.close = close

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            FormatError: a layer is damaged.
            OutOfRange: the range does not lie inside the device.
            Unavailable: the bytes cannot be had just now.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a device of {self.size}")
        inside = max(0, min(length, self._stack.size - offset))
        extents = self._stack.lookup(offset, inside) if inside else []
        parts = [bytes(extent.length) if extent.layer < 0 else b"" for extent in extents]
        requests = self._requests(extents)
        if len(requests) == 1:
            self._carry_out(requests[0], extents, parts)
        else:
            self._side_by_side(requests, extents, parts)
        if inside < length:
            parts.append(bytes(length - inside))
        return b"".join(parts)

    def _side_by_side(
        self, requests: Sequence[_Request], extents: Sequence[Extent], parts: list[bytes]
    ) -> None:
        # The deadline of whoever waits holds in the other threads, too.
        begun = [
            _threads().submit(copy_context().run, self._carry_out, request, extents, parts)
            for request in requests[1:]
        ]
        try:
            for request in requests[:1]:
                self._carry_out(request, extents, parts)
        finally:
            failures = [future.exception() for future in begun]
        for failure in failures:
            if failure is not None:
                raise failure

    def _requests(self, extents: Sequence[Extent]) -> list[_Request]:
        """Return what to ask for, by layer."""
        found: dict[int, list[_Request]] = {}
        order = sorted(
            (extent.layer, extent.place, number)
            for number, extent in enumerate(extents)
            if extent.layer >= 0
        )
        for layer, place, number in order:
            stop = place + extents[number].length
            requests = found.setdefault(layer, [])
            if requests and self._is_near(layer, requests[-1].stop, place):
                last = requests[-1]
                last.pieces.append(number)
                requests[-1] = last._replace(stop=max(stop, last.stop))
            else:
                requests.append(_Request(layer, [number], place, stop))
        return [request for requests in found.values() for request in requests]

    def _is_near(self, layer: int, stop: int, start: int) -> bool:
        """Tell whether what lies between two bytes of a layer's file is little in its blob."""
        source = self._stack.layers[layer].source
        if start - stop <= _GAP:
            return True
        if not isinstance(source, ZFile):
            return False
        first, last = stop // source.block_size, start // source.block_size
        return source.stored(first, last + 1)[1] <= _GAP

    def _carry_out(self, request: _Request, extents: Sequence[Extent], parts: list[bytes]) -> None:
        source = self._stack.layers[request.layer].source
        if isinstance(source, ZFile):
            pieces = [(extents[n].place, extents[n].length) for n in request.pieces]
            found = self._from_blocks(source, request, pieces)
        else:
            found = self._from_bytes(source, request, extents)
        for number, data in zip(request.pieces, found, strict=True):
            parts[number] = data

    def _from_bytes(
        self, source: RangeSource, request: _Request, extents: Sequence[Extent]
    ) -> list[bytes]:
        size = request.stop - request.start
        data = source.read_at(request.start, size)
        starts = [extents[number].place - request.start for number in request.pieces]
        lengths = [extents[number].length for number in request.pieces]
        return [data[at : at + size] for at, size in zip(starts, lengths, strict=True)]

    def _from_blocks(
        self, source: ZFile, request: _Request, pieces: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        size = source.block_size
        first, stop = request.start // size, -(-request.stop // size)
        at, stored = source.stored(first, stop)
        data = memoryview(source.stored_source.read_at(at, stored))
        return [_decoded(source, data, at, place, length) for place, length in pieces]


def _decoded(source: ZFile, data: memoryview, at: int, place: int, length: int) -> bytes:
    """Return a piece of a ZFile's bytes, given what is stored from a byte on."""
    size = source.block_size
    first, stop = place // size, -(-(place + length) // size)
    start, stored = source.stored(first, stop)
    found = source.decode(first, stop, data[start - at : start - at + stored])
    skipped = place - first * size
    return found if len(found) == length else found[skipped : skipped + length]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "overlaybd-fetch")
