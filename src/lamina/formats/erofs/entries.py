"""The entries of directories, read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from lamina.formats.erofs.inodes import Node
from lamina.formats.erofs.layout import DIRENT, EROFS_FT_SYMLINK, MAX_NAME
from lamina.formats.erofs.metadata import damaged
from lamina.formats.erofs.runs import runs
from lamina.formats.erofs.tree import HOLE, Extent
from lamina.formats.erofs.volume import Volume


class Entry(NamedTuple):
    """A name in a directory, `.` and `..` included.

    Attributes:
        name: without any `/`.
        nid: number of the inode, any.
        file_type: EROFS_FT_*, or 0 where it is not said.
        at: byte of its block, for errors.
    """

    name: bytes
    nid: int
    file_type: int
    at: int


def parse_block(block: bytes, at: int) -> list[Entry]:
    """Return the entries of one block, each name after the one before it.

    Args:
        block: as much as the directory has of it.
        at: byte where it begins, for errors.

    Raises:
        FormatError: it is damaged.
    """
    size = len(block)
    end = DIRENT.unpack_from(block)[1] if size > DIRENT.size else 0
    if not DIRENT.size <= end < size or end % DIRENT.size:
        expected = f"dirents before their names, in {size} bytes"
        raise damaged(at, expected, f"names from byte {end} on")
    dirents = list(DIRENT.iter_unpack(block[:end]))
    # Behind the last name of a block are NULs, or nothing.
    size = block.find(b"\0", dirents[-1][1]) if dirents[-1][1] < size else -1
    stops = [offset for _, offset, _ in dirents[1:]]
    stops.append(size if size >= 0 else len(block))
    return _checked(block, at, dirents, stops)


def _checked(
    block: bytes, at: int, dirents: list[tuple[int, int, int]], stops: list[int]
) -> list[Entry]:
    found = []
    last = b""
    wrong = b"/" in block or b"\0" in block[dirents[0][1] : stops[-1]]
    for (nid, start, file_type), stop in zip(dirents, stops, strict=True):
        if not 0 < stop - start <= MAX_NAME or stop > len(block):
            expected = f"names of 1 to {MAX_NAME} bytes"
            raise damaged(at, expected, f"one from byte {start} to {stop} of {len(block)}")
        name = block[start:stop]
        if wrong and (b"/" in name or b"\0" in name):
            raise damaged(at, "names without '/' and NUL", name)
        if name <= last:
            raise damaged(at, "names in ascending order", f"{name!r} after {last!r}")
        if file_type > EROFS_FT_SYMLINK:
            raise damaged(at, "the type of a file", f"{file_type} for {name!r}")
        found.append(Entry(name, nid, file_type, at))
        last = name
    return found


def entries(volume: Volume, directory: Node) -> Iterator[Entry]:
    """Yield what a directory has, in the order of its names; `.` and `..` are among them.

    Raises:
        FormatError: it is damaged.
    """
    last = b""
    for run in runs(volume, directory, 0, directory.size):
        for start in range(0, run.length, volume.block):
            found = _read_block(volume, directory, run, start)
            if found[0].name <= last:
                got = f"{found[0].name!r} after {last!r}"
                raise damaged(found[0].at, "names in ascending order", got)
            yield from found
            last = found[-1].name


def find_entry(volume: Volume, directory: Node, name: bytes) -> Entry | None:
    """Return the entry of a name, found as the kernel finds it; None where it finds none.

    Raises:
        FormatError: a block on the way is damaged.
    """
    low, high = 0, -(-directory.size // volume.block)
    while low < high:
        middle = (low + high) // 2
        start = middle * volume.block
        stop = min(start + volume.block, directory.size)
        run = next(runs(volume, directory, start, stop))
        found = _read_block(volume, directory, run, 0)
        if name < found[0].name:
            high = middle
        elif name > found[-1].name:
            low = middle + 1
        else:
            index = bisect_left(found, name, key=_name)
            return found[index] if found[index].name == name else None
    return None


def _read_block(volume: Volume, directory: Node, run: Extent, start: int) -> list[Entry]:
    """Return the entries of the block at a byte of a run."""
    if run.device:
        place = "a hole" if run.device == HOLE else f"data on device {run.device}"
        raise damaged(directory.at, "a directory in the image itself", place)
    at = run.offset + start
    size = min(volume.block, run.length - start)
    return parse_block(volume.metadata.read(at, size, "block of a directory"), at)


def _name(entry: Entry) -> bytes:
    return entry.name
