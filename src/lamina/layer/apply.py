"""Extraction of a layer's tar stream into a directory.

The archive is hostile: every path is resolved beneath the root by the kernel (openat2), what is
made is made by a directory's descriptor and a single name, and no link is ever written through.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import threading
from collections.abc import Iterable
from contextlib import ExitStack

from lamina.errors import FormatError, ResourceExhausted
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import Entry, TarReader, Type
from lamina.formats.tar.layer import (
    OPAQUE_MARKER,
    PREFIX,
    check_device,
    check_owner,
    clean,
    deleted_name,
    times,
)
from lamina.layer.cursor import DIRECTORY, is_directory
from lamina.layer.faults import translated
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.metadata import copy_directory, set_xattrs
from lamina.layer.pipeline import HashedChunks
from lamina.layer.target import LayerTarget
from lamina.layer.tree import Directory, Tree
from lamina.layer.whiteouts import Deletions, OverlayDeletions, PlainDeletions
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from lamina.linux.userns import in_user_namespace

log = logging.getLogger(__name__)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = {Type.CHAR: stat.S_IFCHR, Type.BLOCK: stat.S_IFBLK}
_MAX_WARNINGS = 8
_TIMES = struct.Struct("=qqH")
"""Access and modification time in nanoseconds and the length of the path that follows."""


def apply_layer(
    chunks: Iterable[bytes],
    target: LayerTarget,
    *,
    limits: LayerLimits,
    ahead: threading.Event | None = None,
) -> Applied:
    """Extract the uncompressed tar stream in `chunks` and return what it was.

    The whole stream is read and hashed, bytes after the archive's end included. After an error the
    target holds whatever was extracted until then; the caller removes it.

    Args:
        chunks: the stream, in pieces of any size.
        target: where to extract it.
        limits: bounds.
        ahead: while set, a thread of its own makes the chunks (see `HashedChunks`).

    Raises:
        FormatError: the archive is damaged, cut off, or asks for what cannot be.
        ResourceExhausted: a limit, the disk or a quota is exceeded.
        PermissionDenied: the kernel refuses an owner, a device or an attribute.
    """
    with ExitStack() as stack:
        hashed = HashedChunks(chunks, max_bytes=limits.max_bytes, ahead=ahead)
        stream = ChunkStream(stack.enter_context(hashed))
        root_fd = _open_root(stack, target.root)
        parents = [_open_root(stack, parent) for parent in target.parents]
        applier = _Applier(root_fd, parents, target, limits)
        stack.callback(applier.close)
        applier.run(TarReader(stream))
        stream.drain()
        warnings = tuple(applier.warnings)
        return Applied(hashed.digest, hashed.size, applier.entries, warnings, applier.implied)


def _open_root(stack: ExitStack, path: os.PathLike[str]) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


class _Applier:
    """Makes the entries of one archive.

    Attributes:
        entries: members seen so far.
        warnings: what was left out; the first few only.
        implied: as of `Applied`.
    """

    def __init__(
        self, root_fd: int, parents: list[int], target: LayerTarget, limits: LayerLimits
    ) -> None:
        self.entries = 0
        self.warnings: list[str] = []
        self.implied = False
        self._parents = parents
        self._limits = limits
        self._tree = Tree(root_fd, self._directory_implied)
        self._deletions: Deletions
        self._hidden: tuple[bytes, ...] = (b"trusted.",)
        if target.overlay_whiteouts:
            self._deletions = OverlayDeletions(user_xattrs=target.user_xattrs)
            self._hidden += (b"user.fuseoverlayfs.",)
            self._hidden += (b"user.overlay.",) if target.user_xattrs else ()
        else:
            with os.scandir(root_fd) as entries:
                empty = next(entries, None) is None
            self._deletions = PlainDeletions(self._tree, empty=empty)
        self._owner = (os.geteuid(), os.getegid())
        self._devices_allowed = not in_user_namespace()
        self._file_bytes = 0
        self._directory_times = bytearray()
        self._makers = {
            Type.REGULAR: self._regular,
            Type.DIRECTORY: self._directory,
            Type.SYMLINK: self._symlink,
            Type.HARD_LINK: self._hard_link,
            Type.CHAR: self._node,
            Type.BLOCK: self._node,
            Type.FIFO: self._node,
        }

    def close(self) -> None:
        """Let go of descriptors."""
        self._tree.close()

    def run(self, reader: TarReader) -> None:
        """Extract everything, and set the times of directories when nothing changes them more."""
        self._reader = reader
        while (entry := reader.next()) is not None:
            self._at = reader.offset
            self.entries += 1
            self._check_limits(entry)
            try:
                self._extract(entry)
            except OSError as error:
                raise translated(error, entry.name, self._at) from error
        self._set_directory_times()

    def _check_limits(self, entry: Entry) -> None:
        if self.entries > self._limits.max_entries:
            raise ResourceExhausted(
                "unpack layer", hint=f"it has more than {self._limits.max_entries} entries"
            )
        self._file_bytes += entry.real_size
        if self._file_bytes > self._limits.max_bytes:
            raise ResourceExhausted(
                "unpack layer", hint=f"its files have more than {self._limits.max_bytes} bytes"
            )

    def _extract(self, entry: Entry) -> None:
        self._path = clean(entry.name)
        self._parent, _, base = self._path.rpartition(b"/")
        if not base:
            return
        if entry.type in _DEVICES and not self._devices_allowed:
            self._warn(f"device {os.fsdecode(entry.name)} is left out in a user namespace")
            return
        check_owner(entry, self._at)
        directory = self._tree.make(self._parent)
        if base.startswith(PREFIX) and self._delete(directory, base, entry):
            return
        make = self._makers.get(entry.type)
        if make is None:
            got = repr(entry.type)
            raise FormatError("tar", self._at, expected="a type that layers have", got=got)
        make(entry, directory, base)
        self._deletions.note(directory, base)

    def _delete(self, directory: Directory, base: bytes, entry: Entry) -> bool:
        if base == OPAQUE_MARKER:
            self._deletions.make_opaque(directory)
            return True
        name = deleted_name(base, self._at)
        if name is None:
            return False
        self._deletions.delete(directory, name, entry, self._at)
        return True

    def _regular(self, entry: Entry, directory: Directory, base: bytes) -> None:
        exact = self._is_exact(entry, directory)
        mode = entry.mode if exact else 0o600
        try:
            fd = os.open(base, _NEW_FILE, mode, dir_fd=directory.fd)
        except FileExistsError:
            directory = self._clear(directory, base)
            fd = os.open(base, _NEW_FILE, mode, dir_fd=directory.fd)
        try:
            if entry.sparse is not None:
                self._write_sparse(fd, entry)
            elif entry.size:
                self._write(fd)
            if not exact:
                self._finish(fd, entry)
            os.utime(fd, ns=times(entry))
        finally:
            os.close(fd)

    def _write(self, fd: int) -> None:
        take = self._reader.take
        while part := take():
            written = os.write(fd, part)
            while written < len(part):
                written += os.write(fd, part[written:])

    def _write_sparse(self, fd: int, entry: Entry) -> None:
        part = memoryview(b"")
        for offset, length in entry.sparse or ():
            while length:
                part = part or self._reader.take()
                written = os.pwrite(fd, part[:length], offset)
                part = part[written:]
                offset += written
                length -= written
        os.ftruncate(fd, entry.real_size)

    def _directory(self, entry: Entry, directory: Directory, base: bytes) -> None:
        exact = self._is_exact(entry, directory)
        try:
            os.mkdir(base, entry.mode if exact else 0o700, dir_fd=directory.fd)
        except FileExistsError:
            directory, exact = self._merge(entry, directory, base)
        if not exact:
            fd = os.open(base, DIRECTORY, dir_fd=directory.fd)
            try:
                self._finish(fd, entry)
            finally:
                os.close(fd)
        self._remember_times(self._path, *times(entry))

    def _merge(self, entry: Entry, directory: Directory, base: bytes) -> tuple[Directory, bool]:
        """Keep a directory that is there; put one in the place of anything else.

        Returns the parent, opened anew if need be, and whether owner and mode are right already.
        """
        status = os.lstat(base, dir_fd=directory.fd)
        if not is_directory(status):
            directory = self._clear(directory, base)
            os.mkdir(base, 0o700, dir_fd=directory.fd)
            self._deletions.replaced(status, directory, base)
            return directory, False
        wanted = (entry.uid, entry.gid, entry.mode)
        if (
            not entry.xattrs
            and (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == wanted
        ):
            return directory, True
        self._tree.forget()
        return self._tree.make(self._parent), False

    def _symlink(self, entry: Entry, directory: Directory, base: bytes) -> None:
        try:
            os.symlink(entry.linkname, base, dir_fd=directory.fd)
        except FileExistsError:
            directory = self._clear(directory, base)
            os.symlink(entry.linkname, base, dir_fd=directory.fd)
        self._finish_name(directory, base, entry, is_link=True)

    def _hard_link(self, entry: Entry, directory: Directory, base: bytes) -> None:
        self._tree.remove(directory, base)
        parent, _, name = entry.linkname.rstrip(b"/").rpartition(b"/")
        source = self._tree.find(parent)
        directory = self._tree.make(self._parent)
        if name in {b"", b".", b".."}:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        status = os.lstat(name, dir_fd=source.fd)
        if is_directory(status):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.link(name, base, src_dir_fd=source.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        self._finish_name(directory, base, entry, is_link=stat.S_ISLNK(status.st_mode))

    def _node(self, entry: Entry, directory: Directory, base: bytes) -> None:
        kind = _DEVICES.get(entry.type, stat.S_IFIFO)
        device = 0
        if entry.type in _DEVICES:
            check_device(entry, self._at)
            device = os.makedev(entry.devmajor, entry.devminor)
        try:
            os.mknod(base, kind, device, dir_fd=directory.fd)
        except FileExistsError:
            directory = self._clear(directory, base)
            os.mknod(base, kind, device, dir_fd=directory.fd)
        self._finish_name(directory, base, entry, is_link=False)

    def _is_exact(self, entry: Entry, directory: Directory) -> bool:
        """Tell whether a new inode needs nothing but the mode that it is made with."""
        owner_fits = (entry.uid, entry.gid) == self._owner
        return owner_fits and directory.plain and not (entry.mode & 0o7000 or entry.xattrs)

    def _finish(self, fd: int, entry: Entry) -> None:
        """Set owner, attributes and mode, in the order in which none undoes another."""
        os.fchown(fd, entry.uid, entry.gid)
        self._warn_xattrs(entry, set_xattrs(fd, entry, hidden=self._hidden))
        os.fchmod(fd, entry.mode)

    def _finish_name(
        self, directory: Directory, base: bytes, entry: Entry, *, is_link: bool
    ) -> None:
        """Do the same for what must not be opened, and set the times."""
        at = directory.fd
        if not directory.plain or (entry.uid, entry.gid) != self._owner or not is_link:
            os.chown(base, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        if entry.xattrs:
            path = b"/proc/self/fd/%d/%s" % (at, base)
            self._warn_xattrs(entry, set_xattrs(path, entry, hidden=self._hidden))
        if not is_link:
            os.chmod(base, entry.mode, dir_fd=at)
        os.utime(base, ns=times(entry), dir_fd=at, follow_symlinks=False)

    def _clear(self, directory: Directory, base: bytes) -> Directory:
        """Remove what is in the way and return the directory, opened anew if need be."""
        self._tree.remove(directory, base)
        return self._tree.make(self._parent)

    def _directory_implied(self, fd: int, path: bytes) -> None:
        """Make a directory that the archive only implies look as the lower layers have it."""
        self.implied |= not self._parents
        for parent in self._parents:
            flags = os.O_RDONLY | os.O_DIRECTORY
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
            try:
                source = openat2(path, flags, dir_fd=parent, resolve=resolve)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return
                raise
            try:
                hidden = (b"trusted.", b"user.overlay.", b"user.fuseoverlayfs.")
                self._remember_times(path, *copy_directory(source, fd, hidden=hidden))
            finally:
                os.close(source)
            return

    def _remember_times(self, path: bytes, access: int, modification: int) -> None:
        self._directory_times += _TIMES.pack(access, modification, len(path)) + path

    def _set_directory_times(self) -> None:
        recorded = memoryview(self._directory_times)
        position = 0
        while position < len(recorded):
            access, modification, length = _TIMES.unpack_from(recorded, position)
            position += _TIMES.size
            path = bytes(recorded[position : position + length])
            position += length
            try:
                self._set_times(path, access, modification)
            except OSError as error:
                raise translated(error, path, self._reader.offset) from error

    def _set_times(self, path: bytes, access: int, modification: int) -> None:
        """Set the times of a directory, unless a later entry has put something else there."""
        parent, _, base = path.rpartition(b"/")
        try:
            fd = os.open(base, DIRECTORY, dir_fd=self._tree.find(parent).fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            return
        try:
            os.utime(fd, ns=(access, modification))
        finally:
            os.close(fd)

    def _warn_xattrs(self, entry: Entry, names: list[bytes]) -> None:
        if names:
            listed = ", ".join(os.fsdecode(name) for name in names)
            self._warn(f"attributes of {os.fsdecode(entry.name)} are left out: {listed}")

    def _warn(self, text: str) -> None:
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
