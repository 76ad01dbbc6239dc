"""The device that layers make together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from lamina.errors import OutOfRange
from lamina.formats.lsmt.layout import damaged
from lamina.formats.lsmt.mappings import Extent, Mappings
from lamina.formats.lsmt.merging import merge
from lamina.formats.lsmt.reader import Layer

_PIECE = 1 << 20


class Stack:
    """A source of the bytes of a device.

    Attributes:
        size: bytes: what the uppermost layer says that says anything.
        layers: from the lowest to the uppermost.
        mappings: what shows of them.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Lay layers over each other, the lowest first; their sources must stay.

        Raises:
            FormatError: none says how large the device is.
            InvalidArgument: there are too many.
            ResourceExhausted: they have too many mappings.
        """
        sizes = (layer.about.virtual_size for layer in reversed(layers))
        self.size = next(filter(None, sizes), 0)
        if not self.size:
            raise damaged(48, "a layer with the size of the device", f"none of {len(layers)}")
        self.layers = tuple(layers)
        self.mappings: Mappings = merge([layer.mappings for layer in layers])

    def lookup(self, offset: int, length: int) -> list[Extent]:
        """Return what a range of bytes is made of, without gaps.

        Raises:
            OutOfRange: the range does not lie inside the device.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a device of {self.size}")
        return self.mappings.lookup(offset, length)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            FormatError: a layer is damaged.
            OutOfRange: the range does not lie inside the device.
            Unavailable: the bytes cannot be had just now.
        """
        return b"".join(map(self._read, self.lookup(offset, length)))

    def extents(self) -> Iterator[Extent]:
        """Yield what layers say of the device, mapping by mapping, up to its end."""
        for extent in self.mappings.extents():
            if extent.offset >= self.size:
                return
            yield extent._replace(length=min(extent.length, self.size - extent.offset))

    def _read(self, extent: Extent) -> bytes:
        if extent.layer < 0:
            return bytes(extent.length)
        return self.layers[extent.layer].source.read_at(extent.place, extent.length)


def export_image(stack: Stack, out: BinaryIO) -> int:
    """Write a device as a raw image, and return how many of its bytes come from layers.

    What is zeros by the index is passed over, so that the image is sparse. `out` is an empty file,
    which gets longer where it is truncated to more; it is neither closed nor flushed.

    Raises:
        FormatError: a layer is damaged.
        Unavailable: its bytes cannot be had just now.
    """
    copied = 0
    for extent in stack.extents():
        if extent.layer < 0:
            continue
        out.seek(extent.offset)
        source = stack.layers[extent.layer].source
        for done in range(0, extent.length, _PIECE):
            out.write(source.read_at(extent.place + done, min(_PIECE, extent.length - done)))
        copied += extent.length
    out.truncate(stack.size)
    return copied
