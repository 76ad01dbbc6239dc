"""Changes written as a layer: a reproducible tar stream, hashed and compressed on its way."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.core.digest import Digest
from lamina.core.disk_usage import disk_bytes
from lamina.errors import Aborted
from lamina.formats.compression import Compression, compressor
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding
from lamina.formats.tar.layer import OPAQUE_MARKER, PREFIX
from lamina.layer.changes import Change, ChangeKind, between, in_upper
from lamina.layer.cursor import is_directory
from lamina.layer.node import Node, look, next_data, next_hole

_PART = 256 << 10
_SECOND = 1_000_000_000
_MAX_PIECES = 4096
"""Of a sparse file; readers have a limit for the map, and a file in more pieces has few holes."""
_TYPES = {
    stat.S_IFREG: Type.REGULAR,
    stat.S_IFDIR: Type.DIRECTORY,
    stat.S_IFLNK: Type.SYMLINK,
    stat.S_IFCHR: Type.CHAR,
    stat.S_IFBLK: Type.BLOCK,
    stat.S_IFIFO: Type.FIFO,
}


@dataclass(frozen=True, slots=True)
class Diff:
    """A layer that was written.

    Attributes:
        diff_id: digest of the uncompressed tar stream.
        digest: digest of what was written.
        size: bytes of what was written.
    """

    diff_id: Digest
    digest: Digest
    size: int


def write_diff(
    lower: Path | None,
    upper: Path,
    write: Callable[[bytes], object],
    *,
    compression: Compression = Compression.GZIP,
    source_date_epoch: int | None = None,
) -> Diff:
    """Write the layer that changes the tree `lower` (None: nothing) into the tree `upper`.

    Both are walked; they are mounted snapshots, or plain directories.

    Args:
        lower: root of the tree before.
        upper: root of the tree after.
        write: takes the layer's bytes.
        compression: of the layer.
        source_date_epoch: seconds since 1970 that no time in the layer is to exceed.

    Raises:
        Aborted: a tree was changed while it was being read.
    """
    with ExitStack() as stack:
        upper_fd = _open(stack, upper)
        lower_fd = None if lower is None else _open(stack, lower)
        changes = between(lower_fd, upper_fd)
        return _write(changes, upper_fd, write, compression, source_date_epoch)


def write_upper_diff(
    upper: Path,
    lowers: Sequence[Path],
    write: Callable[[bytes], object],
    *,
    compression: Compression = Compression.GZIP,
    source_date_epoch: int | None = None,
) -> Diff:
    """Write the layer that an overlay's upper directory is, at the cost of what was changed.

    Args:
        upper: the upper directory; its overlay need not be mounted.
        lowers: the lower directories, nearest first.
        write: takes the layer's bytes.
        compression: of the layer.
        source_date_epoch: seconds since 1970 that no time in the layer is to exceed.

    Raises:
        FailedPrecondition: the upper directory says too little (`redirect_dir`, `metacopy`);
            `write_diff` of the mounted trees works.
        Aborted: it was changed while it was being read.
    """
    with ExitStack() as stack:
        upper_fd = _open(stack, upper)
        changes = in_upper(upper_fd, [_open(stack, lower) for lower in lowers])
        return _write(changes, upper_fd, write, compression, source_date_epoch)


def _open(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _write(
    changes: Iterable[Change],
    upper_fd: int,
    write: Callable[[bytes], object],
    compression: Compression,
    epoch: int | None,
) -> Diff:
    output = _Output(write, compression)
    writer = ChangeWriter(upper_fd, output.add, epoch)
    try:
        for change in changes:
            writer.add(change)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Aborted("write a layer", hint=f"the tree was changed meanwhile: {error}") from error
    output.add(END_OF_ARCHIVE)
    return output.finish()


class _Output:
    """Hashes the tar stream, compresses it, hashes that too, and passes it on."""

    def __init__(self, write: Callable[[bytes], object], compression: Compression) -> None:
        self._write = write
        self._compressor = compressor(compression)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._size = 0

    def add(self, data: bytes) -> None:
        check_cancelled()
        self._plain.update(data)
        self._emit(self._compressor.compress(data))

    def finish(self) -> Diff:
        self._emit(self._compressor.flush())
        diff_id, digest = (f"sha256:{h.hexdigest()}" for h in (self._plain, self._packed))
        return Diff(Digest(diff_id), Digest(digest), self._size)

    def _emit(self, data: bytes) -> None:
        if data:
            self._packed.update(data)
            self._size += len(data)
            self._write(data)


class ChangeWriter:
    """Writes entries; each is preceded by the directories above it that were not written yet.

    Of a file with several names the first changed one has the content and the others are links to
    it, unchanged ones included: otherwise they would keep the old inode.

    Args:
        root_fd: of the tree after.
        emit: takes the stream.
        epoch: seconds that no time is to exceed.
        exact: write times to the nanosecond, access control lists, and no holes. Other programs
            need not understand it.
    """

    def __init__(
        self,
        root_fd: int,
        emit: Callable[[bytes], None],
        epoch: int | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self._root_fd = root_fd
        self._exact = exact
        self._emit = emit
        self._epoch = epoch
        self._written: set[bytes] = set()
        self._sources: dict[tuple[int, int], bytes] = {}
        self._waiting: dict[tuple[int, int], list[bytes]] = {}

    def add(self, change: Change) -> None:
        """Write the entries of one change; changes come as `between` and `in_upper` yield them."""
        directory, _, base = change.path.rpartition(b"/")
        if change.kind is ChangeKind.DELETE:
            name = PREFIX + base
            self._add_whiteout(b"%s/%s" % (directory, name) if directory else name)
        elif change.kind is ChangeKind.OPAQUE:
            self._add_whiteout(b"%s/%s" % (change.path, OPAQUE_MARKER))
        elif change.node is not None and not stat.S_ISSOCK(change.node.status.st_mode):
            self._add_node(change.node, changed=change.kind is not ChangeKind.UNMODIFIED)

    def _add_whiteout(self, name: bytes) -> None:
        self._put(Entry(name, Type.REGULAR, 0))

    def _add_node(self, node: Node, *, changed: bool) -> None:
        status = node.status
        if is_directory(status) or status.st_nlink == 1:
            if changed:
                self._put_node(node)
            return
        inode = (status.st_dev, status.st_ino)
        source = self._sources.get(inode)
        if source is not None:
            self._put(self._link(node, node.path, source))
        elif not changed:
            self._waiting.setdefault(inode, []).append(node.path)
        else:
            self._sources[inode] = node.path
            self._put_node(node)
            for name in self._waiting.pop(inode, []):
                self._put(self._link(node, name, node.path))

    def _link(self, node: Node, name: bytes, source: bytes) -> Entry:
        entry = self._entry(node)
        return replace(entry, name=name, type=Type.HARD_LINK, linkname=source, size=0)

    def _put_node(self, node: Node) -> None:
        entry = self._entry(node)
        if entry.type != Type.REGULAR or not entry.size:
            self._put(entry)
            return
        fd = node.open()
        try:
            if self._exact:
                entry = _without_holes(fd, entry)
            self._put(entry)
            self._copy(fd, entry)
        finally:
            os.close(fd)

    def _put(self, entry: Entry) -> None:
        name = entry.name.rstrip(b"/")
        self._put_parents(name)
        if entry.type == Type.DIRECTORY:
            self._written.add(name)
        self._emit(header(entry))

    def _put_parents(self, name: bytes) -> None:
        missing = []
        parent = name.rpartition(b"/")[0]
        while parent and parent not in self._written:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for path in reversed(missing):
            node = look(self._root_fd, path)
            if node is None:
                raise Aborted("write a layer", hint=f"{os.fsdecode(path)} was removed meanwhile")
            self._written.add(path)
            self._emit(header(self._entry(node)))

    def _entry(self, node: Node) -> Entry:
        status = node.status
        type = _TYPES[stat.S_IFMT(status.st_mode)]
        mtime = status.st_mtime_ns
        if not self._exact:
            mtime -= mtime % _SECOND
        if self._epoch is not None:
            mtime = min(mtime, self._epoch * _SECOND)
        is_device = type in {Type.CHAR, Type.BLOCK}
        return Entry(
            node.path + b"/" if type == Type.DIRECTORY else node.path,
            type,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size if type == Type.REGULAR else 0,
            mtime,
            linkname=node.target() if type == Type.SYMLINK else b"",
            devmajor=os.major(status.st_rdev) if is_device else 0,
            devminor=os.minor(status.st_rdev) if is_device else 0,
            xattrs=node.xattrs(exact=self._exact),
        )

    def _copy(self, fd: int, entry: Entry) -> None:
        for offset, length in ((0, entry.size),) if entry.sparse is None else entry.sparse:
            self._copy_piece(fd, offset, length, entry)
        self._emit(bytes(padding(entry.size)))

    def _copy_piece(self, fd: int, offset: int, length: int, entry: Entry) -> None:
        while length:
            data = os.pread(fd, min(length, _PART), offset)
            if not data:
                name = os.fsdecode(entry.name)
                raise Aborted("write a layer", name, hint="it became shorter meanwhile")
            self._emit(data)
            offset += len(data)
            length -= len(data)


def _without_holes(fd: int, entry: Entry) -> Entry:
    """Return the entry with a map of its data, if the file has holes that are worth it."""
    status = os.fstat(fd)
    if disk_bytes(status) >= entry.size:
        return entry
    pieces: list[tuple[int, int]] = []
    start = next_data(fd, 0)
    while start is not None and start < entry.size and len(pieces) < _MAX_PIECES:
        end = min(next_hole(fd, start), entry.size)
        pieces.append((start, end - start))
        start = next_data(fd, end)
    data = sum(length for _, length in pieces)
    if len(pieces) == _MAX_PIECES or data == entry.size:
        return entry
    return replace(entry, sparse=tuple(pieces), size=data, real_size=entry.size)
