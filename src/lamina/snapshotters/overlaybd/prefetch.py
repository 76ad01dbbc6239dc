"""What an acceleration layer wants to be fetched first."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path

from lamina.errors import LaminaError
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd.places import device_ranges
from lamina.formats.overlaybd.priorities import Priority, read_priorities
from lamina.formats.overlaybd.trace import ACCESS, HEADER, MAX_ACCESSES, is_trace, read_trace
from lamina.lazy.layer import TABLE
from lamina.lazy.table import UnitTable
from lamina.lazy.unit_list import WANTED, write_units
from lamina.linux.fiemap import file_extents
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

log = logging.getLogger(__name__)

_MAX_FILES = 1 << 16
"""Of a list; directories in it may have any number."""
_LOOK_SECONDS = 30.0
"""How long files of a list are looked for: somebody waits for the mount, and maybe the registry."""
_MAX_UNITS = 1 << 22
"""That are looked at, the same ones counted again."""
_MAX_TRACE = HEADER.size + MAX_ACCESSES * ACCESS.size
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_Range = tuple[int, int]
"""First byte of a device, and the byte behind the last."""


def want_traced(trace: Path, stack: Stack, cache: Path) -> bool:
    """Note what a trace of reads has of a device; False where it is a list of paths.

    A trace that is damaged is told of in the log, and no reason not to use the device.

    Raises:
        OSError: it cannot be read, or the note not be written.
    """
    raw = _read(trace)
    if not is_trace(raw):
        return False
    with _told(trace):
        found = list(device_ranges(stack, read_trace(raw)))
        _want(cache, ((one.offset, one.offset + one.length) for one in found))
    return True


def want_listed(trace: Path, point: Path, cache: Path) -> None:
    """Note where on a device the files of a list are; what is nowhere is passed over.

    To find that out, the metadata of these files is read.

    Args:
        trace: the list.
        point: where the device is mounted.
        cache: the device's.

    Raises:
        OSError: it cannot be read, or the note not be written.
    """
    raw = _read(trace)
    with _told(trace):
        _want(cache, _listed(point, read_priorities(raw)))


def _read(trace: Path) -> bytes:
    """Return the file; no more of one that is too long than shows that it is."""
    with trace.open("rb") as file:
        return file.read(_MAX_TRACE + 1)


@contextmanager
def _told(trace: Path) -> Iterator[None]:
    """Go on after an error of the body, which the log tells of."""
    try:
        yield
    except LaminaError as error:
        log.warning("nothing is fetched first: %s", error, extra={"path": str(trace)})


def _want(cache: Path, ranges: Iterable[_Range]) -> None:
    with closing(UnitTable.open(cache / TABLE)) as table:
        found = (unit for first, stop in ranges for unit in table.find(first, stop))
        units = dict.fromkeys(islice(found, _MAX_UNITS))
    if units:
        write_units(cache / WANTED, units)


def _listed(point: Path, priorities: Iterable[Priority]) -> Iterator[_Range]:
    root = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        paths = chain.from_iterable(paths_of(root, priority) for priority in priorities)
        deadline = time.monotonic() + _LOOK_SECONDS
        for path in islice(paths, _MAX_FILES):
            if time.monotonic() > deadline:
                return
            yield from _ranges(root, path)
    finally:
        os.close(root)


def paths_of(root: int, priority: Priority) -> Iterator[str]:
    """Yield the paths of a line of a list, relative to the directory that is open as `root`.

    A directory that only a symbolic link leads to has none: it may be one of the host.
    """
    name = os.fsdecode(priority.path).lstrip("/")
    if not priority.tree:
        yield name
        return
    try:
        top = openat2(name or ".", os.O_PATH | os.O_DIRECTORY, dir_fd=root, resolve=_RESOLVE)
    except OSError:
        return
    try:
        start = f"/proc/self/fd/{top}"
        for directory, _, names in os.walk(start):
            inside = Path(name, os.path.relpath(directory, start))
            for each in sorted(names):
                yield str(inside / each)
    finally:
        os.close(top)


def _ranges(root: int, path: str) -> list[_Range]:
    """Return where on the device a regular file is; nothing for what is none, or not there."""
    try:
        # A list may name a device or a pipe, which nobody is to open.
        handle = openat2(path, os.O_PATH, dir_fd=root, resolve=_RESOLVE)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return []
        fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # such as a file that is encrypted
        return []
    finally:
        os.close(handle)
    try:
        with suppress(OSError):  # of its metadata, which whoever wants it will see
            return [(one.physical, one.physical + one.length) for one in file_extents(fd)]
        return []
    finally:
        os.close(fd)
