"""The directory of one container: what the runtime needs, and what is left of it afterwards.

    config.json   OCI specification              runtime/      the runtime's own state
    rootfs/       mount point of the root        runtime.log   why the runtime failed
    init.pid      process id, once started       exit.json     how the process ended
    execs/ID.pid  processes of `tasks exec`

Whoever works on a container holds a lock on this very directory: the process that supervises it
for its whole life, others for a moment. The kernel frees the lock with its last holder, so a
container whose lock is free and which does not run has been left behind.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument

MAX_ID_LENGTH = 76
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_LOCK_STEP_SECONDS = 0.02


class Busy(FailedPrecondition):
    """Another process holds the container's lock."""


class Exit(NamedTuple):
    """How a container's first process ended.

    Attributes:
        pid: what its process id was.
        code: exit code, or 128 + N when signal N killed it.
        at_ns: when, ns since the epoch.
    """

    pid: int
    code: int
    at_ns: int


def check_id(id: str) -> None:
    """Check that `id` can name a container (containerd's rule for identifiers).

    Raises:
        InvalidArgument: it cannot.
    """
    if len(id) > MAX_ID_LENGTH or not _ID.fullmatch(id):
        raise InvalidArgument(
            "name container",
            id[: MAX_ID_LENGTH + 1],
            hint=f"use at most {MAX_ID_LENGTH} letters and digits, with single . _ - in between",
        )


class Bundle:
    """Paths and files of the container `id` below `directory`."""

    def __init__(self, directory: Path, id: str) -> None:
        check_id(id)
        self.id = id
        self.path = directory / id
        self.config = self.path / "config.json"
        self.rootfs = self.path / "rootfs"
        self.state_root = self.path / "runtime"
        self.log = self.path / "runtime.log"
        self.pid_file = self.path / "init.pid"
        self.exit_file = self.path / "exit.json"
        self.execs = self.path / "execs"

    @contextmanager
    def locked(self, *, wait_seconds: float = 0.0) -> Iterator[int]:
        """Hold the lock of the directory, which is made when absent; the value is its descriptor.

        Raises:
            Busy: another process holds it, and still does after `wait_seconds`.
        """
        fd = self._lock(time.monotonic() + wait_seconds)
        try:
            yield fd
        finally:
            os.close(fd)

    def is_idle(self) -> bool:
        """Tell whether nobody is at it and it does not run; makes nothing."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        pid = self.pid()
        return not pid or not Path("/proc", str(pid)).exists()

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write `config.json`."""
        self.config.write_text(json.dumps(spec), encoding="utf-8")

    def read_spec(self) -> dict[str, Any]:
        """Return `config.json`.

        Raises:
            DataLoss: it is not there, or damaged.
        """
        try:
            spec: dict[str, Any] = json.loads(self.config.read_bytes())
        except (OSError, ValueError) as error:
            raise DataLoss(f"read {self.config}: {error}") from error
        return spec

    def write_exit(self, exit: Exit) -> None:
        """Write how the container ended, whole or not at all."""
        new = self.exit_file.with_suffix(".new")
        fields = {"pid": exit.pid, "code": exit.code, "at_ns": exit.at_ns}
        new.write_text(json.dumps(fields), encoding="utf-8")
        new.replace(self.exit_file)

    def read_exit(self) -> Exit | None:
        """Return how the container ended, or None where nobody has written it."""
        try:
            return Exit(**json.loads(self.exit_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataLoss(f"read {self.exit_file}: {error}") from error

    def pid(self) -> int:
        """Return the id of the container's first process, 0 before it is started."""
        return read_pid(self.pid_file)

    def forget_task(self) -> None:
        """Remove what there is of a run, but the container's specification."""
        for name in (self.pid_file, self.exit_file, self.log):
            name.unlink(missing_ok=True)
        for directory in (self.state_root, self.execs):
            _remove_tree(directory)

    def remove(self) -> None:
        """Remove the directory; nothing may be mounted on `rootfs`.

        Raises:
            OSError: ENOTEMPTY or EBUSY: something is mounted or stored in `rootfs`. Its content
                is never touched.
        """
        if self.rootfs.exists():
            self.rootfs.rmdir()
        _remove_tree(self.path)

    def _lock(self, deadline: float) -> int:
        while True:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # removed in this moment
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(self.path, fd):
                    return fd
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise Busy("use container", self.id, hint="another command is at it") from None
                time.sleep(_LOCK_STEP_SECONDS)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def read_pid(path: Path) -> int:
    """Return the number in a pid file, 0 where there is none."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _is_same(path: Path, fd: int) -> bool:
    """Tell whether the directory that was locked is still the one of that name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _remove_tree(directory: Path) -> None:
    """Remove a small tree of our own and the runtime's files; none is no error."""
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(Path(entry.path))
        else:
            Path(entry.path).unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
