"""A blob on its way into the content store: written, hashed, resumed, committed or given up.

Layout of `ingest/HASH-OF-REF/`, as in containerd: `data` (what is there so far), `ref`, `total`
(decimal bytes), `startedat` (RFC 3339); and `boot`, which containerd does not have: the boot that
wrote it. The directory itself is locked with flock(2) by its
writer, so one process at a time writes a blob, and a killed writer holds nothing back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from lamina.core.digest import Digest, algorithm, parse_digest
from lamina.core.units import format_size
from lamina.errors import DigestMismatch, LaminaError, ResourceExhausted
from lamina.images.manifest import Descriptor
from lamina.images.registry.cancel import Cancel

POLL_SECONDS = 0.05
_CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FILES = ("data", "ref", "total", "startedat", "updatedat", "boot")


class Writer:
    """Writes one blob. Leaving it as a context manager keeps what is there, to be resumed.

    Made by `ContentStore.open_writer`; it takes over what `lock` holds once it is made. Not for
    use by several threads at once.

    Attributes:
        ref: name of the ingest.
        path: the file being written; it is renamed by `commit`.
        resumed: bytes that were there when it was opened.
    """

    def __init__(
        self,
        ref: str,
        directory: Path,
        expected: Descriptor | None,
        publish: Callable[[Path, Digest, int, Mapping[str, str]], None],
        lock: ExitStack,
        boot: str,
    ) -> None:
        self.ref = ref
        self.path = directory / "data"
        self._directory = directory
        self._expected = expected
        self._publish = publish
        self._algorithm = algorithm(expected.digest) if expected else "sha256"
        self._hash = hashlib.new(self._algorithm)
        self._offset = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, 0o600)
        lock.callback(os.close, self._fd)
        same_boot = self._describe(boot)
        if same_boot and expected is not None:
            self._rehash(expected)
        else:
            self.restart()
        self.resumed = self._offset
        self._lock = lock.pop_all()

    @property
    def offset(self) -> int:
        """Bytes that are there: where a download goes on."""
        return self._offset

    @property
    def digest(self) -> Digest:
        """The digest of what is there."""
        return parse_digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash.

        Raises:
            DigestMismatch: more bytes than the blob has.
            ResourceExhausted: the disk or a quota is full.
        """
        if self._expected and self._offset + len(data) > self._expected.size:
            raise self._wrong_size(f"more than {self._expected.size}")
        view = memoryview(data)
        while view:
            written = self._append(view)
            self._hash.update(view[:written])
            self._offset += written
            view = view[written:]

    def commit(self, labels: Mapping[str, str] | None = None) -> Digest:
        """Check size and digest, put the blob into the store, and return its digest.

        A blob that is there already is no error; it gets the labels too. The ingest is gone then.

        Raises:
            DigestMismatch: the bytes are not what was expected; the ingest is kept: `abort` it.
        """
        digest = self.digest
        if self._expected and self._offset != self._expected.size:
            raise self._wrong_size(str(self._offset))
        if self._expected and digest != self._expected.digest:
            raise DigestMismatch("write", self.ref, expected=self._expected.digest, got=digest)
        os.fchmod(self._fd, 0o444)
        self._publish(self.path, digest, self._offset, labels or {})
        self.abort()
        return digest

    def restart(self) -> None:
        """Drop what is there and begin again at byte 0."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self._algorithm)
        self._offset = self.resumed = 0

    def abort(self) -> None:
        """Remove the ingest with all that was written."""
        remove_ingest(self._directory)
        self.close()

    def close(self) -> None:
        """Let go of the ingest and keep it; calling it again does nothing."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            left = self._expected.size - self._offset if self._expected else len(view)
            raise ResourceExhausted(
                f"write {self.ref} ({format_size(left)} to go) below",
                self._directory.parent,
                hint="free some space on its disk",
            ) from error

    def _wrong_size(self, got: str) -> LaminaError:
        size = str(self._expected.size) if self._expected else ""
        return DigestMismatch("write", f"{self.ref}: size in bytes", expected=size, got=got)

    def _describe(self, boot: str) -> bool:
        """Write what the ingest is for; tell whether this boot has written what is there.

        After a power failure the file may have its length and not its bytes.
        """
        (self._directory / "ref").write_text(self.ref, encoding="utf-8")
        total = self._expected.size if self._expected else 0
        (self._directory / "total").write_text(str(total), encoding="ascii")
        writer = self._directory / "boot"
        if writer.exists() and writer.read_text(encoding="ascii") == boot:
            return True
        writer.write_text(boot, encoding="ascii")
        started = datetime.now(UTC).isoformat()
        (self._directory / "startedat").write_text(started, encoding="ascii")
        return False

    def _rehash(self, expected: Descriptor) -> None:
        """Take in what an earlier writer left; start over where it is more than the blob."""
        if os.fstat(self._fd).st_size > expected.size:
            self.restart()
            return
        while data := os.pread(self._fd, _CHUNK, self._offset):
            self._hash.update(data)
            self._offset += len(data)


def lock_ingest(directory: Path, cancel: Cancel) -> ExitStack | None:
    """Make and lock the ingest's directory, waiting for its present writer.

    Returns:
        What unlocks it; None if the directory was finished by another while this one waited, in
        which case the caller looks again whether the blob is there.

    Raises:
        Cancelled: `cancel` was set while waiting.
    """
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:  # `exist_ok` would raise it where the last writer removes it just now
        pass
    with ExitStack() as stack:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        stack.callback(os.close, fd)
        while not try_lock(fd):
            cancel.check("wait for another writer of", directory)
            cancel.wait(POLL_SECONDS)
        if not is_still(directory, fd):
            return None
        return stack.pop_all()


def try_lock(fd: int) -> bool:
    """Lock an open file exclusively; False if someone else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_ingest(directory: Path) -> None:
    """Remove an ingest's directory; the caller has it locked."""
    for name in _FILES:
        (directory / name).unlink(missing_ok=True)
    try:
        directory.rmdir()
    except FileNotFoundError:
        pass


def is_still(directory: Path, fd: int) -> bool:
    """Tell whether the path leads to the directory that is open, not to one made since."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
