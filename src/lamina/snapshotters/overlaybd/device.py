"""Devices: made of the layers of snapshots, with a cache that is the whole device.

    ROOT/snapshots/ID/device        the cache: see `lamina.lazy.layer`; its data is the device
    ROOT/snapshots/ID/device.json   which layers it is made of

What is fetched at a time is an aligned window of the device, as far as layers have something there.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.errors import FormatError, ResourceExhausted
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.stack import Stack
from lamina.lazy.layer import LayerFile, create_layer
from lamina.lazy.sources.description import DeviceDescription
from lamina.lazy.table import Header, UnitColumns
from lamina.lazy.unit import BLOCK, DIGEST_LENGTH, MAX_CACHE_BYTES, Check, Codec
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.overlaybd.layers import open_noted
from lamina.snapshotters.overlaybd.on_demand import Report, untold

CACHE = "device"
WINDOW = 256 << 10
"""Bytes of a device that are fetched at a time: a link of 100 Mbit/s brings that, compressed, in
about the time that it takes to ask."""
MAX_WINDOWS = 1 << 22
"""With data, of a device: 1 TiB. Each costs 58 bytes of memory and disk, and some mappings can lead
all of a device to the same few bytes of a blob."""


@contextmanager
def opened_stack(
    directories: Sequence[Path], access: Access, report: Report = untold
) -> Iterator[Stack]:
    """Open the layers in some directories for the body, the lowest first.

    Args:
        directories: of snapshots.
        access: how to reach the registry.
        report: is told what is read from there.

    Raises:
        FormatError: one is damaged.
        LaminaError: one cannot be had, or there are too many.
    """
    stack, held = open_stack(directories, access, report)
    with held:
        yield stack


def open_stack(
    directories: Sequence[Path], access: Access, report: Report = untold
) -> tuple[Stack, ExitStack]:
    """As `opened_stack`, but return what lets go of them."""
    with ExitStack() as held:
        layers = []
        for directory in directories:
            layer, close = open_noted(directory, access, report)
            held.callback(close)
            layers.append(layer)
        return Stack(layers), held.pop_all()


def device_size(stack: Stack) -> int:
    """Return the bytes of a device's cache: whole blocks.

    Raises:
        FormatError: it is larger than a cache can be.
    """
    size = -(-stack.size // BLOCK) * BLOCK
    if size > MAX_CACHE_BYTES:
        expected = f"a device of at most {MAX_CACHE_BYTES} bytes"
        raise FormatError("LSMT", 48, expected=expected, got=str(stack.size))
    return size


def make_cache(stack: Stack, directory: Path, gate: str) -> int:
    """Make the cache of a device with nothing in it yet; return the bytes of all its windows.

    Raises:
        OSError: it cannot be written.
        FormatError: the device is larger than a cache can be.
        ResourceExhausted: it is larger than a file can be there, or has too much data.
    """
    size = device_size(stack)
    columns = _columns(windows(stack.extents()))
    layer = LayerFile(DeviceDescription(len(stack.layers)), gate)
    try:
        create_layer(directory, layer, Header(size, size), columns)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        hint = "put the root of the snapshotter on one that does, such as XFS"
        what = f"keep a device of {size} bytes, a file that its filesystem does not take:"
        raise ResourceExhausted(what, directory, hint=hint) from error
    return sum(columns.cache_length)


def windows(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the parts of a device that have data: first byte, a multiple of BLOCK, and length.

    They are in order, and none has bytes of two windows.
    """
    start = stop = 0
    for extent in extents:
        if extent.layer < 0:
            continue
        position, end = extent.offset // BLOCK * BLOCK, extent.offset + extent.length
        while position < end:
            limit = (position // WINDOW + 1) * WINDOW
            if stop > start and position // WINDOW != start // WINDOW:
                yield start, stop - start
                start = stop
            if stop <= start:
                start = max(position, start)
            stop = min(end, limit)
            position = limit
    if stop > start:
        yield start, stop - start


def _columns(found: Iterable[tuple[int, int]]) -> UnitColumns:
    starts, lengths = array("Q"), array("I")
    for start, length in found:
        starts.append(start)
        lengths.append(length)
        if len(starts) > MAX_WINDOWS:
            what = f"keep a device with data in more than {MAX_WINDOWS} windows of {WINDOW} bytes"
            raise ResourceExhausted(what)
    count = len(starts)
    blocks = array("I", (start // BLOCK for start in starts))
    return UnitColumns(
        source_offset=starts,
        source_length=lengths,
        cache_block=blocks,
        cache_length=lengths,
        first_piece=array("I", range(count + 1)),
        codec=array("B", bytes((Codec.NONE,)) * count),
        inner_offset=array("I", bytes(4 * count)),
        length=lengths,
        cache_offset=starts,
        check=array("B", bytes((Check.NONE,)) * count),
        digests=bytes(DIGEST_LENGTH * count),
    )
