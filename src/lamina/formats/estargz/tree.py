"""The inodes of a layer as an overlay takes them, their data on the first extra device."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.formats.erofs.layout import MAX_NAME, MAX_TARGET, MAX_XATTR_VALUE
from lamina.formats.erofs.tree import BLOCK, Extent, Inode
from lamina.formats.estargz.files import File, entry_error, read_files
from lamina.formats.estargz.toc import TOC_NAME, Toc
from lamina.formats.estargz.units import Layout, Unit, lay_out
from lamina.formats.tar.layer import OPAQUE_MARKER, PREFIX, clean, deleted_name

PREFETCH = b".prefetch.landmark"
NO_PREFETCH = b".no.prefetch.landmark"
_HIDDEN = frozenset([PREFETCH, NO_PREFETCH, TOC_NAME])
_STEERING = (b"trusted.", b"user.overlay.", b"user.fuseoverlayfs.")
"""Attributes that steer an overlay, which a layer does not bring."""
_MAX_PATH = 4095
_MAX_IMPLIED = 1 << 17
"""Directories without an entry: one name can ask for two thousand, each with a long path."""
_TYPES = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TIME = (1 << 63) - 1
_MAJOR, _MINOR = 1 << 12, 1 << 20
_EXTENT = 1 << 30
"""Bytes of an extent at most; a multiple of each chunk size that EROFS has here."""


class LayerTree(NamedTuple):
    """What `to_tree` returns.

    Attributes:
        root: its data lies on device 1.
        units: what fills that device, in its order.
        cache_size: bytes of that device.
        prefetch: bytes of the blob, from its start, that are wanted first: 0 where a landmark says
            that none are, None where there is no landmark.
    """

    root: Inode
    units: list[Unit]
    cache_size: int
    prefetch: int | None


def to_tree(toc: Toc, *, opaque_xattr: bytes, require_digests: bool = True) -> LayerTree:
    """Make the inodes of a layer.

    Deletions become overlayfs's own: a character device 0/0, and `opaque_xattr` = `y`. Directories
    that no entry describes belong to root, with mode 0755. Landmarks and the TOC are left out.

    Args:
        toc: as `read_toc` returns it.
        opaque_xattr: `trusted.overlay.opaque` or `user.overlay.opaque`.
        require_digests: False for a legacy stargz, whose data cannot be verified.

    Raises:
        FormatError: the TOC breaks a rule; names the entry and the field.
    """
    contents = read_files(toc)
    layout = lay_out(contents, require_digests=require_digests)
    files = contents.files
    builder = _Builder(files, layout, opaque_xattr)
    for file in files.values():
        builder.make(file)
    for file in files.values():
        builder.attach(file)
    for file in files.values():
        builder.delete(file)
    return LayerTree(builder.root, layout.units, layout.cache_size, _prefetch(files))


def _prefetch(files: dict[bytes, File]) -> int | None:
    if NO_PREFETCH in files:
        return 0
    landmark = files.get(PREFETCH)
    return landmark.chunks[0].stream if landmark and landmark.chunks else None


class _Builder:
    def __init__(self, files: dict[bytes, File], layout: Layout, opaque_xattr: bytes) -> None:
        self._files = files
        self._layout = layout
        self._opaque = opaque_xattr
        self._inodes: dict[bytes, Inode] = {}
        self._implied: dict[bytes, Inode] = {}
        self.root = Inode(stat.S_IFDIR | 0o755)

    def make(self, file: File) -> None:
        """Make the inode of an entry, unless that is a link or only says something."""
        if file.path in _HIDDEN or _base(file.path).startswith(PREFIX):
            return
        if file.entry.type == "hardlink":
            return
        inode = _inode(file)
        if inode.is_regular and inode.size:
            inode.extents = _extents(self._layout.places[file.path], inode.size)
        if not file.path:
            if not inode.is_directory:
                raise _error(file, "type", "dir for the root", file.entry.type)
            self.root = inode
        self._inodes[file.path] = inode

    def attach(self, file: File) -> None:
        """Put an entry's inode into its directory."""
        path = file.path
        if not path or path in _HIDDEN or _base(path).startswith(PREFIX):
            return
        if len(_base(path)) > MAX_NAME or len(path) > _MAX_PATH or b"\0" in path:
            raise _error(file, "name", "a path that Linux can have", len(path))
        inode = self._inodes.get(path) or self._linked(file)
        self._parent(file).children[_base(path)] = inode

    def delete(self, file: File) -> None:
        """Put a whiteout into its directory, or mark that as opaque."""
        base = _base(file.path)
        if not base.startswith(PREFIX):
            return
        if len(base) > MAX_NAME + len(PREFIX) or len(file.path) > _MAX_PATH or b"\0" in base:
            raise _error(file, "name", "a path that Linux can have", len(file.path))
        if base == OPAQUE_MARKER:
            directory = self._parent(file)
            directory.xattrs = {**directory.xattrs, self._opaque: b"y"}
            return
        name = deleted_name(base, file.number)
        if name is None:
            return
        children = self._parent(file).children
        if name not in children:
            entry = file.entry
            children[name] = Inode(stat.S_IFCHR, entry.uid, entry.gid, _mtime(file))

    def _linked(self, file: File) -> Inode:
        """Return the inode that a hard link leads to, over other links where need be."""
        seen = {file.path}
        target = file
        while target.entry.type == "hardlink":
            path = _clean_link(target)
            if path in seen:
                raise _error(file, "linkName", "a target that is no link to itself", path)
            seen.add(path)
            found = self._files.get(path)
            if found is None:
                raise _error(file, "linkName", "a file that the layer has", path)
            target = found
        inode = self._inodes.get(target.path)
        if inode is None or inode.is_directory:
            raise _error(file, "linkName", "something that can have several names", target.path)
        for path in seen:
            self._inodes[path] = inode
        return inode

    def _parent(self, file: File) -> Inode:
        path = file.path.rpartition(b"/")[0]
        missing: list[bytes] = []
        while path and path not in self._inodes and path not in self._implied:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        directory = self._directory(path)
        if not directory.is_directory or path in _HIDDEN:
            raise _error(file, "name", "a path through directories", file.path)
        if len(self._implied) + len(missing) > _MAX_IMPLIED:
            raise _error(
                file, "name", f"at most {_MAX_IMPLIED} directories without entry", file.path
            )
        for path in reversed(missing):
            if path in self._files or len(_base(path)) > MAX_NAME:
                raise _error(file, "name", "a path through directories", file.path)
            below = self._implied[path] = Inode(stat.S_IFDIR | 0o755)
            directory.children[_base(path)] = below
            directory = below
        return directory

    def _directory(self, path: bytes) -> Inode:
        if not path:
            return self.root
        found = self._inodes.get(path)
        return self._implied[path] if found is None else found


def _inode(file: File) -> Inode:
    entry = file.entry
    inode = Inode(_TYPES[entry.type] | entry.mode & 0o7777, entry.uid, entry.gid, _mtime(file))
    if entry.type == "reg":
        inode.size = entry.size
    elif entry.type == "symlink":
        inode.target = entry.link_name.encode()
        if not 0 < len(inode.target) <= MAX_TARGET or b"\0" in inode.target:
            expected = f"a target of 1 to {MAX_TARGET} bytes"
            raise _error(file, "linkName", expected, len(inode.target))
    elif entry.type in {"char", "block"}:
        if entry.dev_major >= _MAJOR or entry.dev_minor >= _MINOR:
            number = f"{entry.dev_major}:{entry.dev_minor}"
            raise _error(file, "devMajor", "device numbers of Linux", number)
        inode.rdev = os.makedev(entry.dev_major, entry.dev_minor)
    if entry.xattrs:
        inode.xattrs = _xattrs(file, entry.xattrs)
    return inode


def _xattrs(file: File, given: dict[str, bytes]) -> dict[bytes, bytes]:
    kept: dict[bytes, bytes] = {}
    for text, value in given.items():
        name = text.encode()
        if name.startswith(_STEERING):
            continue
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or len(value) > MAX_XATTR_VALUE:
            raise _error(file, "xattrs", "names and values that Linux can have", name[:80])
        kept[name] = value
    return kept


def _extents(start: int, size: int) -> Sequence[Extent]:
    assert start % BLOCK == 0
    return tuple(
        Extent(min(_EXTENT, size - done), 1, start + done) for done in range(0, size, _EXTENT)
    )


def _mtime(file: File) -> int:
    """Return nanoseconds; what lies before 1970, as Go's zero, or beyond 63 bits is 1970."""
    if file.entry.modtime is None:
        return 0
    since = file.entry.modtime - _EPOCH
    time = (since.days * 86400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
    return time if 0 <= time <= _MAX_TIME else 0


def _clean_link(file: File) -> bytes:
    return clean(file.entry.link_name.encode())


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _error(file: File, field: str, expected: str, got: object) -> FormatError:
    return entry_error(file.number, file.entry, field, expected, got)
