"""What a directory tree is, in a form that two trees can be compared in."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """Everything that a layer can set of one file."""

    mode: str
    owner: tuple[int, int]
    mtime_ns: int
    content: str
    """Digest of a file's bytes, target of a link, numbers of a device."""
    same_file: str
    """The first of the names that are hard links to it."""
    xattrs: dict[str, bytes]


def describe(root: Path) -> dict[str, Entry]:
    """Return every entry below `root` by its relative name, `.` included."""
    first_names: dict[tuple[int, int], str] = {}
    found = {}
    for path in sorted(_paths(root), key=os.fsencode):
        name = str(path.relative_to(root))
        status = path.lstat()
        # An overlay of several file systems has the devices and inode numbers of all of them.
        inode = (status.st_dev, status.st_ino)
        first = name if stat.S_ISDIR(status.st_mode) else first_names.setdefault(inode, name)
        found[name] = Entry(
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            _content(path, status),
            first,
            _xattrs(path),
        )
    return found


def as_text(entries: dict[str, Entry]) -> str:
    """Return lines that two machines can compare."""
    lines = (
        ascii((name, entry._replace(xattrs={}), sorted(entry.xattrs.items())))
        for name, entry in sorted(entries.items())
    )
    return "\n".join(lines)


def _paths(root: Path) -> Iterator[Path]:
    """Yield the root and all below it; a link is not followed, wherever it may lead."""
    yield root
    for directory, directories, others in os.walk(root):
        yield from (Path(directory, name) for name in (*directories, *others))


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _xattrs(path: Path) -> dict[str, bytes]:
    """Return all but overlay's own marks."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if not name.startswith("trusted.overlay.")
    }
