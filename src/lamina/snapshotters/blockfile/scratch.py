"""The scratch: the file with an empty filesystem that every snapshot without parent starts from."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.errors import FailedPrecondition, NotFound, SnapshotterSkipped
from lamina.snapshotters.blockfile.superblock import EXT_TYPES, family_of, read_superblock
from lamina.tools.lookup import installed

log = logging.getLogger(__name__)

MAKEABLE = (*EXT_TYPES, "xfs")
"""Filesystems that Lamina makes itself."""


class Scratch:
    """The file `ROOT/scratch`, made when it is first needed.

    Args:
        root: the snapshotter's directory.
        fs_type: the filesystem that is in it.
        size: in bytes, of the one that Lamina makes.
        source: the file to copy instead of making one; None for none.
        follow: copy `source` again whenever it is another file than the one copied last.
    """

    def __init__(
        self, root: Path, *, fs_type: str, size: int, source: Path | None, follow: bool
    ) -> None:
        self.path = root / "scratch"
        self._new = root / "scratch.new"
        self._lock = root / "scratch.lock"
        self._fs_type = fs_type
        self._size = size
        self._source = source
        self._follow = follow

    def check(self) -> None:
        """See whether there is a scratch, or can be one; makes nothing.

        Raises:
            SnapshotterSkipped: there is none, and nothing to make it with.
            NotFound: `scratch_file` does not exist.
            FailedPrecondition: there is another filesystem in it.
        """
        if self._is_current():
            self._require_type(self.path)
        elif self._source is None:
            self._require_mkfs()

    def ready(self) -> Path:
        """Return the file, after making it where it is missing or out of date.

        Raises:
            FailedPrecondition: there is another filesystem in it.
            ToolError, OSError: it cannot be made.
        """
        if self._is_current():
            return self.path
        with self._locked():
            if not self._is_current():
                self._make()
        return self.path

    @property
    def is_made(self) -> bool:
        """Whether Lamina makes the filesystem, and does not copy a file of the user's."""
        return self._source is None

    def _make(self) -> None:
        self._new.unlink(missing_ok=True)  # of a process that was killed
        try:
            self._fill()
            self._require_type(self._new)
            self._sync()
        except BaseException:
            self._new.unlink(missing_ok=True)
            raise
        self._new.rename(self.path)
        log.info("made the scratch file", extra={"path": str(self.path)})

    def _fill(self) -> None:
        # Lists of snapshotters only ask whether there can be a scratch.
        from lamina.snapshotters.blockfile.copy import copy_without_zeros
        from lamina.snapshotters.blockfile.image import make_image

        if self._source is None:
            made = self._new.with_suffix(".mkfs")
            made.unlink(missing_ok=True)
            try:
                make_image(made, self._fs_type, self._size)
                copy_without_zeros(made, self._new)  # mkfs.xfs writes 64 MiB of them
            finally:
                made.unlink(missing_ok=True)
            return
        copied = self._source.stat()
        copy_without_zeros(self._source, self._new)
        # By these a later version of it is known.
        os.utime(self._new, ns=(copied.st_atime_ns, copied.st_mtime_ns))

    def _sync(self) -> None:
        with self._new.open("rb") as opened:
            os.fsync(opened.fileno())

    def _is_current(self) -> bool:
        try:
            here = self.path.stat()
        except FileNotFoundError:
            if self._source is not None:
                self._source_status()
            return False
        if not self._follow:
            return True
        there = self._source_status()
        return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)

    def _source_status(self) -> os.stat_result:
        if self._source is None:
            raise AssertionError("there is a scratch_file wherever it is to be followed")
        try:
            return self._source.stat()
        except FileNotFoundError as error:
            hint = "correct the key scratch_file of blockfile's configuration, or leave it out"
            raise NotFound("copy scratch_file", self._source, hint=hint) from error

    def _require_type(self, file: Path) -> None:
        found = read_superblock(file).family
        if found and found != family_of(self._fs_type):
            raise FailedPrecondition(
                f"use scratch {file}: it is {found}, and fs_type is {self._fs_type}",
                hint=f"correct fs_type or scratch_file, and remove {self.path} if it is there",
            )

    def _require_mkfs(self) -> None:
        if self._fs_type not in MAKEABLE:
            raise SnapshotterSkipped(
                "blockfile",
                reason=f"there is no scratch, and Lamina makes no {self._fs_type}",
                fix="name a file that has an empty one with the key scratch_file",
            )
        program = f"mkfs.{self._fs_type}"
        if not installed(program):
            package = "xfsprogs" if self._fs_type == "xfs" else "e2fsprogs"
            raise SnapshotterSkipped(
                "blockfile",
                reason=f"{program} is not installed",
                fix=f"apt-get install {package}, or name a file with the key scratch_file",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock that lets one process make it; it ends with the process, if need be."""
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
