"""Sealed layers of what was written to a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from lamina.errors import DataLoss
from lamina.formats.lsmt.layout import SECTOR, About
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.writer import Written, write_layer
from lamina.lazy.layer import LayerLock
from lamina.lazy.sources.file import FileSource
from lamina.lazy.writable.directory import DATA, DATA_START, MAP, read_device
from lamina.lazy.writable.sector_map import SectorMap
from lamina.lazy.writable.sector_states import State


def seal_writable(
    directory: Path, target: Path, about: About, *, below: Stack | None = None
) -> Written:
    """Write a sealed LSMT layer of what was written to a device, durably.

    The device is to be unmounted and flushed, and not served any more. It stays as it is.

    Args:
        directory: of the device.
        target: file that the layer becomes, whole or not at all; one that is there is replaced.
        about: what the layer says of itself, but for its size, which is the device's.
        below: the device of the layers below: where they have nothing, discards hide nothing, and
            are left out.

    Raises:
        NotFound: there is no such device.
        FailedPrecondition: it is being served.
        FormatError: it is damaged.
        DataLoss: the disk could not take what had been written to it.
        ResourceExhausted: it is too scattered for a layer.
        Unavailable, OSError: files cannot be read or written.
    """
    with ExitStack() as opened:
        opened.callback(LayerLock(directory).release)
        described = read_device(directory)
        fd = os.open(directory / MAP, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        opened.callback(os.close, fd)
        map = SectorMap(fd, has_lower=bool(described.lower))
        opened.callback(map.close)
        if map.is_lost:
            hint = "the disk could not take what had been written"
            raise DataLoss("seal a writable device", directory, hint=hint)
        source = FileSource(directory / DATA)
        opened.callback(source.close)
        extents = _extents(map, below) if described.lower else _written(map)
        return _write(target, extents, source, about._replace(virtual_size=described.size))


def _written(map: SectorMap) -> Iterator[Extent]:
    """Yield what was written above nothing: what is zeros need not be said."""
    for run in map.runs():
        if run.state == State.WRITTEN:
            yield _of_data(run.first * SECTOR, run.stop * SECTOR)


def _extents(map: SectorMap, below: Stack | None) -> Iterator[Extent]:
    for run in map.runs():
        start, stop = run.first * SECTOR, run.stop * SECTOR
        if run.state == State.WRITTEN:
            yield _of_data(start, stop)
        elif run.state == State.ZEROS and below is None:
            yield Extent(start, stop - start, ZEROS, 0)
        elif run.state == State.ZEROS and below is not None:
            yield from _hiding(min(start, below.size), min(stop, below.size), below)


def _of_data(start: int, stop: int) -> Extent:
    return Extent(start, stop - start, 0, DATA_START + start)


def _hiding(start: int, stop: int, below: Stack) -> Iterator[Extent]:
    """Yield zeros where the layers below have data."""
    for extent in below.lookup(start, stop - start):
        if extent.layer not in {HOLE, ZEROS}:
            yield Extent(extent.offset, extent.length, ZEROS, 0)


def _write(target: Path, extents: Iterator[Extent], source: FileSource, about: About) -> Written:
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with new.open("wb") as out:
            written = write_layer(out, extents, [source], about)
            out.flush()
            os.fsync(out.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return written
