"""A snapshot that has a filesystem of its own, as one overlaybd layer with its very blocks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Snapshotter
from lamina.errors import FailedPrecondition, InvalidArgument, OutOfRange
from lamina.formats.lsmt.blob import write_blob
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.lsmt.writer import BLOCK, image_extents
from lamina.formats.zfile.envelope import Window
from lamina.formats.zfile.writer import ZFileOptions
from lamina.images.snapshot_export import Exported
from lamina.layer.snapshot_diff import temporary_view
from lamina.linux.reflink import data_extents

_WHAT = "export the blocks of snapshot"


class FileDevice:
    """A file or block device as a `RangeSource`; whoever opened it closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: it does not have them.
            OSError: they cannot be read.
        """
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise OutOfRange(f"read {length} bytes at {offset} of a device of {self.size}")
        return data

    def extents(self) -> Iterator[Extent]:
        """Yield what is not zeros, without reading the holes of a file, which are most of it."""
        for start, stop in self._ranges():
            for extent in image_extents(Window(self, start, stop - start)):
                yield extent._replace(offset=start + extent.offset, place=start + extent.place)

    def _ranges(self) -> list[tuple[int, int]]:
        """Return [start, stop) of blocks with data; those that touch are one."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            return [(0, self.size)]
        found: list[tuple[int, int]] = []
        for first, end in data_extents(self._fd, self.size):
            start, stop = first // BLOCK * BLOCK, min(-(-end // BLOCK) * BLOCK, self.size)
            if found and start <= found[-1][1]:
                start, _ = found.pop()
            found.append((start, stop))
        return found


def export_blocks(
    snapshotter: Snapshotter, key: str, out: BinaryIO, zfile: ZFileOptions | None = None
) -> Exported:
    """Write the filesystem of a snapshot as a sealed layer of a device of the same size.

    Blocks that are zeros are left out. The layer needs no other, and has the filesystem that the
    snapshotter made.

    Args:
        snapshotter: one that keeps a filesystem for each snapshot, such as blockfile or devmapper.
        key: a snapshot that is not Active, and so not written to.
        out: an empty file that can seek; neither closed nor flushed.
        zfile: how blocks are compressed.

    Raises:
        NotFound: no such snapshot.
        FailedPrecondition: it is Active.
        InvalidArgument: the snapshotter keeps no filesystem for it.
        ResourceExhausted: it has more than a layer can tell.
    """
    zfile = zfile or ZFileOptions()
    zfile.check()
    with _viewed(snapshotter, key) as mounts, open(_source(mounts, key), "rb", 0) as file:
        device = FileDevice(file)
        written = write_blob(out, device.extents(), [device], About(device.size), zfile)
    return Exported(out.tell(), written.data, ())


@contextmanager
def _viewed(snapshotter: Snapshotter, key: str) -> Iterator[list[Mount]]:
    """Yield the mounts of a View: of the snapshot itself, or of one for as long as the body."""
    kind = snapshotter.stat(key).kind
    if kind == Kind.ACTIVE:
        raise FailedPrecondition(_WHAT, key, hint="it may be written to: commit it")
    if kind == Kind.VIEW:
        yield snapshotter.mounts(key)
        return
    with temporary_view(snapshotter, key) as mounts:
        yield mounts


def _source(mounts: list[Mount], key: str) -> Path:
    path = Path(mounts[0].source) if len(mounts) == 1 else Path()
    if path.is_absolute() and path.exists():
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return path
    hint = "its snapshotter keeps no filesystem for each: export the tree instead"
    raise InvalidArgument(_WHAT, key, hint=hint)
