"""Deletions in layers: `.wh.NAME` and `.wh..wh..opq` (OCI image specification, `layer.md`).

Applied plainly they delete at once. Applied for an overlay they become what overlayfs itself
writes: a character device 0/0, and the attribute `overlay.opaque` = `y`.
"""

from __future__ import annotations

import os
import stat
from typing import Protocol

from lamina.errors import FailedPrecondition, FormatError
from lamina.formats.tar import Entry
from lamina.layer.removal import clear_directory
from lamina.layer.tree import Directory, Tree


class Deletions(Protocol):
    """How a target takes deletions."""

    def delete(self, directory: Directory, name: bytes, entry: Entry, at: int) -> None:
        """Delete one name of lower layers."""
        ...

    def make_opaque(self, directory: Directory) -> None:
        """Hide what lower layers have in a directory."""
        ...

    def replaced(self, status: os.stat_result, directory: Directory, name: bytes) -> None:
        """Learn that a new directory has taken the place of what `status` tells of."""
        ...

    def note(self, directory: Directory, name: bytes) -> None:
        """Learn that this archive has put something there."""
        ...


class PlainDeletions:
    """Deletes from a directory in which the lower layers are already.

    An opaque marker spares what the same archive has put there, before it or after. For that every
    entry is remembered, as one number, unless the directory was empty when the archive began.
    """

    def __init__(self, tree: Tree, *, empty: bool) -> None:
        self._tree = tree
        self._empty = empty
        self._unpacked: set[int] = set()

    def delete(self, directory: Directory, name: bytes, entry: Entry, at: int) -> None:
        """Remove the name and all below it; it need not exist."""
        self._tree.remove(directory, name)

    def make_opaque(self, directory: Directory) -> None:
        """Remove what is below and was not put there by this archive."""
        if self._empty:
            return
        clear_directory(b".", dir_fd=directory.fd, kept=self._is_unpacked)
        self._tree.forget()

    def replaced(self, status: os.stat_result, directory: Directory, name: bytes) -> None:
        """Need nothing: what was there is gone with all it contained."""

    def note(self, directory: Directory, name: bytes) -> None:
        """Remember it for opaque markers that follow."""
        if not self._empty:
            self._unpacked.add(hash((directory.inode, name)))

    def _is_unpacked(self, inode: int, name: bytes) -> bool:
        return hash((inode, name)) in self._unpacked


class OverlayDeletions:
    """Writes deletions as overlayfs does; the lower layers are stacked below later."""

    def __init__(self, *, user_xattrs: bool) -> None:
        self._opaque = "user.overlay.opaque" if user_xattrs else "trusted.overlay.opaque"

    def delete(self, directory: Directory, name: bytes, entry: Entry, at: int) -> None:
        """Make a character device 0/0 with the owner that the whiteout has in the archive."""
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory.fd)
        except FileExistsError as error:
            raise FormatError(
                "tar", at, expected="a whiteout of a lower layer's file", got=repr(entry.name)
            ) from error
        except PermissionError as error:
            raise FailedPrecondition(
                "make an overlay whiteout",
                os.fsdecode(entry.name),
                hint="without CAP_MKNOD in the first user namespace it needs Linux 5.8 or newer",
            ) from error
        os.chown(name, entry.uid, entry.gid, dir_fd=directory.fd, follow_symlinks=False)

    def make_opaque(self, directory: Directory) -> None:
        """Set the attribute."""
        os.setxattr(directory.fd, self._opaque, b"y")

    def replaced(self, status: os.stat_result, directory: Directory, name: bytes) -> None:
        """Keep hiding the lower directory that a whiteout hid before a new one took its place."""
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            path = b"/proc/self/fd/%d/%s" % (directory.fd, name)
            os.setxattr(path, self._opaque, b"y", follow_symlinks=False)

    def note(self, directory: Directory, name: bytes) -> None:
        """Need nothing: an opaque attribute hides lower layers only."""
