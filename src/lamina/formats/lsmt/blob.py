"""Sealed layers in a ZFile in a tar: the blobs that registries have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from lamina.core.source import RangeSource
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.writer import Written, write_layer
from lamina.formats.zfile.envelope import wrapped
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter

_STEP = 1 << 20
"""Bytes of an extent at once, so that it is told how far writing is."""
_DEFAULTS = ZFileOptions()


def write_blob(
    out: BinaryIO,
    extents: Iterable[Extent],
    sources: Sequence[RangeSource],
    about: About,
    options: ZFileOptions = _DEFAULTS,
    *,
    advance: Callable[[int], object] = lambda done: None,
) -> Written:
    """Write a layer as overlaybd's tools push it; equal extents, data and options, equal bytes.

    Args:
        out: an empty file that can seek; neither closed nor flushed. It is left at its end.
        extents: what the layer has, ascending and apart, in whole sectors.
        sources: what their layer numbers and places mean.
        about: what it says of itself.
        options: of the ZFile.
        advance: told how many bytes of the extents were written.

    Returns:
        what became of the layer; its size is the one inside the ZFile.

    Raises:
        InvalidArgument: as `write_layer` and `ZFileWriter`.
        ResourceExhausted: the layer would have more mappings or blocks than overlaybd reads.
    """
    with wrapped(out):
        packed = ZFileWriter(out, options)
        written = write_layer(packed, _told(extents, advance), sources, about)
        packed.close()
    return written


def _told(extents: Iterable[Extent], advance: Callable[[int], object]) -> Iterator[Extent]:
    """Yield extents in pieces, which are joined again where they are mapped."""
    done = 0
    for extent in extents:
        if extent.layer < 0:
            yield extent
            continue
        for at in range(0, extent.length, _STEP):
            length = min(_STEP, extent.length - at)
            yield extent._replace(offset=extent.offset + at, length=length, place=extent.place + at)
            done += length
            advance(done)
