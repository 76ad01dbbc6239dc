"""The uncompressed bytes of a gzip blob at any place, by an index of places to begin at."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from lamina.core.source import RangeSource
from lamina.errors import FormatError, OutOfRange
from lamina.formats.deflate import prefix
from lamina.formats.gzip_index import GzipIndex, Span, damaged

KEPT = 16 << 20
"""Bytes of output that are kept for reads to come, besides the span that was read last."""

_RAW = -15
_READ = 4 << 20
"""Bytes of the blob that are read at once: as a rule, all of a span."""


class _Output:
    """The output of a span, once it has been decompressed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytes | None = None


class GzipSource:
    """A source of the uncompressed bytes, from any number of threads.

    Spans are decompressed as a whole, each by one thread while others wait for it. What comes out
    is not verified but by deflate itself.

    Attributes:
        size: bytes, as the index says.
    """

    def __init__(self, blob: RangeSource, index: GzipIndex) -> None:
        """Take both, which must stay.

        Raises:
            FormatError: the index is one of another blob.
        """
        if blob.size != index.gzip_size:
            raise damaged(33, f"the index of a blob of {blob.size} bytes", index.gzip_size)
        self.size = index.size
        self._blob = blob
        self._index = index
        self._lock = threading.Lock()
        self._outputs: OrderedDict[int, _Output] = OrderedDict()
        self._kept = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of output from byte `offset` on.

        Raises:
            FormatError: blob or index is damaged, or the blob's first member ends too early.
            OutOfRange: the range does not lie inside of what the index covers.
            Unavailable: the bytes cannot be had just now.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a gzip blob with {self.size}")
        parts = []
        position, stop = offset, offset + length
        while position < stop:
            number = self._index.find(position)
            span = self._index.span(number)
            start = position - span.out_offset
            part = self._output(number, span)[start : start + stop - position]
            parts.append(part)
            position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _output(self, number: int, span: Span) -> bytes:
        with self._lock:
            output = self._outputs.setdefault(number, _Output())
            self._outputs.move_to_end(number)
        with output.lock:
            if output.data is None:
                pieces = self._pieces(span)
                self._keep(number, output, inflate_span(span, self._index.window(number), pieces))
            assert output.data is not None
            return output.data

    def _pieces(self, span: Span) -> Iterator[bytes]:
        end = span.in_offset + span.in_size
        for position in range(span.in_offset, end, _READ):
            yield self._blob.read_at(position, min(_READ, end - position))

    def _keep(self, number: int, output: _Output, data: bytes) -> None:
        """Keep the output of a span, and forget those that were asked for longest ago."""
        with self._lock:
            output.data = data
            if self._outputs.get(number) is not output:
                return
            self._kept += len(data)
            for other, old in list(self._outputs.items()):
                if self._kept <= KEPT:
                    break
                if other != number and old.data is not None:
                    del self._outputs[other]
                    self._kept -= len(old.data)


def inflate_span(span: Span, window: bytes, pieces: Iterable[bytes]) -> bytes:
    """Return the output of a span.

    Args:
        span: as the index has it.
        window: the output before it.
        pieces: the blob from `in_offset` on, up to where no more of it is needed; none is empty.

    Raises:
        FormatError: the blob is damaged, or its member ends before that.
    """
    inflater = zlib.decompressobj(_RAW, window)
    parts = []
    left, position, bits = span.out_size, span.in_offset, span.bits
    for piece in pieces:
        data = prefix(piece[0], bits) + piece[1:] if bits else piece
        bits = 0
        try:
            part = inflater.decompress(data, left)
        except zlib.error as error:
            raise _damaged(position, "gzip data", str(error)) from error
        parts.append(part)
        left -= len(part)
        position += len(piece)
        if not left:
            return b"".join(parts)
        if inflater.eof:
            break
    raise _damaged(position, f"{left} more bytes of output", "the end of a gzip member")


def _damaged(offset: int, expected: str, got: str) -> FormatError:
    return FormatError("gzip", offset, expected=expected, got=got)
