"""Records of what was set up, as JSON files, and the lock that changes are made under."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamina.errors import Aborted, DataLoss
from lamina.mount.failure import failure

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LOCK = "lock"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

RecordT = TypeVar("RecordT", bound="DataclassInstance")


@contextmanager
def locked(directory: Path, *, what: str, command: str) -> Iterator[None]:
    """Keep everyone else from changing what is recorded in a directory, for the body.

    Args:
        directory: made if need be, with its parent, which is Lamina's root.
        what: is changed, in a few words: `the pools of`.
        command: the verb of whoever else may be at it: `lamina devmapper`.

    Raises:
        Aborted: somebody else is at it.
        LaminaError: the directory cannot be made, or written to.
    """
    try:
        # The root as the store makes it.
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "name a root that can be written to with --root"
        raise failure(error, f"record {what} {directory}", hint=hint) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        hint = f"another `{command}` is at it: wait for its end"
        raise Aborted(f"change {what}", directory, hint=hint) from error
    try:
        yield
    finally:
        os.close(fd)


def write_record(path: Path, record: DataclassInstance) -> None:
    """Write a record so that a power loss leaves it or the one before."""
    nascent = path.with_name(f".{path.name}")
    try:
        with nascent.open("w") as file:
            json.dump(dataclasses.asdict(record), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        nascent.replace(path)
    except OSError:
        nascent.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def without_room() -> Iterator[None]:
    """Let the body write a record on a full disk in vain.

    For the note that something is being removed: without it, whoever is killed in the middle leaves
    what looks damaged, and is torn down all the same; but what is removed is what gives room again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise


def read_record(path: Path, kind: type[RecordT], *, without: str) -> RecordT:
    """Read a record.

    Args:
        path: of its file.
        kind: its class.
        without: what is left to do where no backup has it: `remove the pool by hand`.

    Raises:
        DataLoss: it is damaged.
        FileNotFoundError: there is none.
    """
    try:
        return kind(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        hint = f"restore it from a backup; or move it away, and {without}"
        raise DataLoss(f"read record: {error}", path, hint=hint) from error


def remove_record(path: Path) -> None:
    """Remove a record, for good."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Let no power loss undo what names a directory has."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
