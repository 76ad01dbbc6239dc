"""The image of a layer, made from the directory that an Active snapshot has changed.

Whiteouts and opaque directories are in it as overlayfs keeps them: they mean the same in a lower
layer. What overlayfs keeps about the upper directory alone is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from lamina.core.cancel import check_cancelled
from lamina.errors import Aborted, InvalidArgument
from lamina.formats.erofs.data import data_runs, sparse_unit
from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from lamina.formats.erofs.writer import reserved_blocks, write_image
from lamina.layer.changes import pairs
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from lamina.linux.reflink import copy_range, data_extents

_CHANGED = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODATA, errno.ESTALE}
)
"""What reading by a path, or an attribute by its name, fails with once it is another or gone."""
_SHOWN = 64
"""Bytes of a path that is too long to be shown."""
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_UPPER_ONLY = frozenset(
    f"{prefix}.overlay.{name}".encode()
    for prefix in ("trusted", "user")
    for name in ("origin", "impure", "nlink", "uuid", "upper", "protattr")
)
"""Documentation/filesystems/overlayfs.rst and fs/overlayfs/overlayfs.h."""


def write_layer(directory: Path, path: Path) -> None:
    """Write the image of a directory to a new file, which is not synced; no part of it stays.

    Raises:
        Aborted: something in the directory was changed meanwhile.
        InvalidArgument: an image cannot hold what is in it; names the path.
        OSError: reading or writing fails.
    """
    with path.open("xb") as out, _opened(directory) as root:
        try:
            _write(root, out)
        except BaseException:
            path.unlink()  # on a full disk, others wait for what it takes
            raise


def is_of_archive(path: Path) -> bool:
    """Tell whether an image is one of a layer's archive, not one that `write_layer` has made.

    Raises:
        FormatError: it has no sound superblock, which whoever writes one writes last.
    """
    from lamina.formats.erofs.metadata import Metadata
    from lamina.formats.erofs.volume import parse_superblock
    from lamina.lazy.sources.file import FileSource

    source = FileSource(path)
    try:
        return any(parse_superblock(Metadata(source)).uuid)
    finally:
        source.close()


def _write(root: int, out: BinaryIO) -> None:
    scan = _Scan(root, out.fileno(), reserved_blocks())
    with _told():
        tree = scan.tree()
    write_image(tree, out, first_block=scan.block if scan.has_data else 0)


class _Scan:
    """Makes the inodes of a directory, and copies the data of its files.

    Attributes:
        block: the first of the image that no file's data is in.
        has_data: whether any file's data is in the image.
    """

    def __init__(self, root: int, out: int, block: int) -> None:
        self.block = block
        self.has_data = False
        self._root = root
        self._out = out
        self._directories: dict[bytes, Inode] = {}
        self._links: dict[tuple[int, int], Inode] = {}

    def tree(self) -> Inode:
        top = self._inode(b".", os.fstat(self._root))
        self._directories[b""] = top
        with closing(pairs(None, self._root)) as found:
            for path, _, status in found:
                if status is not None:
                    check_cancelled()
                    self._add(path, status)
        return top

    def _add(self, path: bytes, status: os.stat_result) -> None:
        parent, _, name = path.rpartition(b"/")
        directory = self._directories[parent]
        if stat.S_ISDIR(status.st_mode):
            inode = self._directories[path] = self._inode(path, status)
        elif status.st_nlink > 1:
            inode = self._linked(path, status)
        else:
            inode = self._inode(path, status)
        directory.children[name] = inode

    def _linked(self, path: bytes, status: os.stat_result) -> Inode:
        key = (status.st_dev, status.st_ino)
        if key not in self._links:
            self._links[key] = self._inode(path, status)
        return self._links[key]

    def _inode(self, path: bytes, status: os.stat_result) -> Inode:
        mode = status.st_mode
        inode = Inode(mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev)
        with self._held(path, status) as (fd, named):
            if stat.S_ISREG(mode):
                inode.size = os.fstat(fd).st_size
                inode.extents = self._copied(fd, inode.size, path)
            elif stat.S_ISLNK(mode):
                inode.target = os.readlink(b"", dir_fd=fd)
            inode.xattrs = _xattrs(named)
        return inode

    @contextmanager
    def _held(self, path: bytes, status: os.stat_result) -> Iterator[tuple[int, str]]:
        """Open what is at a path, not following links, and yield a name of it for attributes."""
        readable = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        flags = os.O_RDONLY | os.O_NONBLOCK if readable else os.O_PATH | os.O_NOFOLLOW
        fd = openat2(path, flags, dir_fd=self._root, resolve=_RESOLVE)
        try:
            if not _is_same(os.fstat(fd), status):
                raise Aborted("read", os.fsdecode(path), hint="it was replaced meanwhile")
            yield fd, f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def _copied(self, fd: int, size: int, path: bytes) -> list[Extent]:
        """Copy a file's data into blocks of its own, and return where its bytes are."""
        unit = sparse_unit(size)
        extents = []
        end = 0
        pieces = [(start, stop - start) for start, stop in data_extents(fd, size)]
        for run in data_runs(pieces, unit):
            start = run[0][0] // unit * unit
            if start > end:
                extents.append(Extent(start - end, HOLE, 0))
            end = min(-(-sum(run[-1]) // unit) * unit, size)
            offset = self.block * BLOCK
            if copy_range(fd, self._out, start, end, offset) != end:
                raise Aborted("read", os.fsdecode(path), hint="it became shorter meanwhile")
            extents.append(Extent(end - start, 0, offset))
            self.block += -(-(end - start) // BLOCK)
            self.has_data = True
        if end < size:
            extents.append(Extent(size - end, HOLE, 0))
        return extents


@contextmanager
def _told() -> Iterator[None]:
    """Turn the errors that changes meanwhile, and paths that are too long, lead to."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            path = os.fsencode(error.filename or b"")
            hint = "an image has paths of at most 4095 bytes: move it upwards, or remove it"
            raise InvalidArgument("read", os.fsdecode(path[:_SHOWN]) + "...", hint=hint) from error
        if error.errno in _CHANGED:
            hint = "it was changed meanwhile: commit again once nothing writes there"
            raise Aborted("read", os.fsdecode(error.filename or ""), hint=hint) from error
        raise


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    kinds = stat.S_IFMT(one.st_mode), stat.S_IFMT(other.st_mode)
    return (one.st_dev, one.st_ino, kinds[0]) == (other.st_dev, other.st_ino, kinds[1])


def _xattrs(named: str) -> dict[bytes, bytes]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(named)]
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}
    return {name: os.getxattr(named, name) for name in names if name not in _UPPER_ONLY}


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)
