"""Notes which files of a container's root file system are opened, in order of first use.

The kernel tells (fanotify(7)): a mark on the file system hears of what is opened through every
mount of it, and so of what the OCI runtime reads, of the container's processes in its mount
namespace, and of those that make themselves another one. Executing a file opens it, as does
loading a library; mapping needs it opened before.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.errors import LaminaError, NotImplementedHere, PermissionDenied, ResourceExhausted
from lamina.linux import fanotify

log = logging.getLogger(__name__)

_DELETED = b" (deleted)"


class OpenedFiles:
    """The regular files of one root file system that are opened while it is watched.

    Attributes:
        lost: events whose file could not be looked at.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._paths: dict[bytes, None] = {}
        self._overflown = False
        self._stopping = -1
        self._mutex = threading.Lock()

    @property
    def paths(self) -> list[bytes]:
        """Paths from the root, without a leading slash, in order of first use."""
        return list(self._paths)

    @contextmanager
    def watch(self, rootfs: Path) -> Iterator[None]:
        """Note what is opened in the body, or until `stop`; once for each object.

        Args:
            rootfs: where it is mounted, as an absolute path without symbolic links.

        Raises:
            PermissionDenied: this process must not watch file systems.
            NotImplementedHere: this kernel cannot.
            ResourceExhausted: there was no memory for all that was to be told.
        """
        with ExitStack() as stack:
            root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            stopping = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, stopping)
            reader = _Reader(rootfs, root, _marked(rootfs), self._note)
            # What is unmounted next would be busy with events that nobody has read, so that all
            # are read first.
            thread = threading.Thread(target=self._follow, args=(reader, stopping))
            thread.start()
            stack.callback(thread.join)
            self._stopping = stopping
            stack.callback(self._close)
            yield
        if self._overflown:
            hint = "give it more memory, or record for a shorter time"
            raise ResourceExhausted("record the opened files of", rootfs, hint=hint)

    def stop(self) -> None:
        """Note nothing that is opened from now on."""
        with self._mutex:
            if self._stopping >= 0:
                os.eventfd_write(self._stopping, 1)

    def _close(self) -> None:
        self.stop()
        with self._mutex:
            self._stopping = -1

    def _note(self, path: bytes) -> None:
        self._paths.setdefault(path)

    def _follow(self, reader: _Reader, stopping: int) -> None:
        poll = select.poll()
        poll.register(reader.group, select.POLLIN)
        poll.register(stopping, select.POLLIN)
        try:
            stopped = False
            while not stopped:
                stopped = any(fd == stopping for fd, _ in poll.poll())
                self._drain(reader)
        finally:
            os.close(reader.group)

    def _drain(self, reader: _Reader) -> None:
        while True:
            try:
                if not reader.read():
                    return
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self._overflown = True
                self.lost += 1
                log.debug("an opened file is not noted: %s", error)


class _Reader:
    """Turns events into paths from the root.

    Args:
        rootfs: where the root is mounted here.
        root: descriptor of it.
        group: of fanotify.
        note: told each path.
    """

    def __init__(self, rootfs: Path, root: int, group: int, note: Callable[[bytes], None]) -> None:
        self.group = group
        self._root = root
        self._prefix = os.fsencode(rootfs) + b"/"
        self._note = note
        # A root that is a directory of some disk shares that file system with all the rest of it.
        self._is_shared = os.fstat(root).st_dev == rootfs.parent.stat().st_dev

    def read(self) -> bool:
        """Note some files; tell whether there were any."""
        found = fanotify.read_opened(self.group)
        for fd in found:
            try:
                path = self._path(fd)
            finally:
                os.close(fd)
            if path is not None:
                self._note(path)
        return bool(found)

    def _path(self, fd: int) -> bytes | None:
        """Return the path by which a file was opened, None if it is none of this root's."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        # Of a mount in another namespace the kernel gives the path from that one's root, which is
        # the container's; before the runtime has made it so, the path is as it is here.
        path = os.readlink(b"/proc/self/fd/%d" % fd)  # noqa: PTH115  of bytes
        path = path.removeprefix(self._prefix).removeprefix(b"/")
        there = self._stat(path)
        if there is not None and os.path.samestat(there, status):
            return path
        if there is None and path.endswith(_DELETED) and not self._is_shared:
            return path.removesuffix(_DELETED)
        return None

    def _stat(self, path: bytes) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _marked(rootfs: Path) -> int:
    """Return a group that is told of the files opened on this file system."""
    group = -1
    try:
        group = fanotify.new_open_group()
        fanotify.add_open_mark(group, rootfs)
    except OSError as error:
        if group >= 0:
            os.close(group)
        raise _refused(rootfs, error) from error
    return group


def _refused(rootfs: Path, error: OSError) -> LaminaError:
    what = "watch which files are opened in"
    if error.errno == errno.EPERM:
        return PermissionDenied(what, rootfs, hint="be root, and in no user namespace")
    if error.errno in {errno.ENOSYS, errno.EINVAL}:
        return NotImplementedHere(what, rootfs, hint="fanotify needs Linux 4.20 or newer")
    return LaminaError(f"{what} {rootfs}: {error.strerror}")
