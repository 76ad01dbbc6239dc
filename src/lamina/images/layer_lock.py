"""One extraction of a layer at a time, across threads and processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.core.digest import Digest
from lamina.images.ingest import POLL_SECONDS, try_lock
from lamina.images.registry.cancel import Cancel


@contextmanager
def layer_lock(
    directory: Path, snapshotter: str, chain_id: Digest, cancel: Cancel
) -> Iterator[None]:
    """Hold the right to extract this layer; wait for whoever has it.

    A holder waits only for the layers below its own, so holders never wait for each other in a
    circle. The kernel releases the lock of a killed process.

    Raises:
        Cancelled: told so while waiting.
    """
    name = hashlib.sha256(f"{snapshotter} {chain_id}".encode()).hexdigest()
    path = directory / name
    fd = _lock(path, cancel)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def sweep_locks(directory: Path) -> None:
    """Remove the lock files that killed processes left."""
    for path in directory.iterdir():
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if try_lock(fd):
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _lock(path: Path, cancel: Cancel) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while not try_lock(fd):
                cancel.check("wait for another extraction of the same layer", "")
                cancel.wait(POLL_SECONDS)
            # The last holder removes the file, so the one just locked may have no name any more.
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
