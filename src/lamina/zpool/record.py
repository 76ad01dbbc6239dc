"""What has been set up: one record, for a root has one zfs snapshotter."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.errors import NotFound
from lamina.provision.record import locked, read_record, remove_record, write_record

DIRECTORY = "zfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A pool that was set up, or is being set up or torn down.

    Attributes:
        pool: its name.
        file: what it is on.
        size: of the file, in bytes.
        mountpoint: the snapshotter's directory.
        state: `making` until all of it is there; `removing` from when nothing of it is wanted.
    """

    pool: str
    file: str
    size: int
    mountpoint: str
    state: Literal["making", "ready", "removing"] = "making"


class Records:
    """The record below one root."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY
        self._path = self.directory / "pool.json"

    def locked(self) -> AbstractContextManager[None]:
        """Keep everyone else from changing the pool for the body.

        Raises:
            Aborted: somebody else is at it.
        """
        return locked(self.directory, what="the pool of", command="lamina zfs")

    def get(self) -> Record | None:
        """Return the record; None where nothing was set up."""
        try:
            return read_record(self._path, Record, without="zpool destroy by hand")
        except FileNotFoundError:
            return None

    def find(self) -> Record:
        """Return the record.

        Raises:
            NotFound: nothing was set up.
        """
        record = self.get()
        if record is None:
            hint = "make one with `lamina zfs setup --loop SIZE`"
            raise NotFound("find a pool that was set up in", self.directory, hint=hint)
        return record

    def write(self, record: Record) -> None:
        """Write the record so that a power loss leaves it or the one before."""
        write_record(self._path, record)

    def remove(self) -> None:
        """Remove the record, for good."""
        remove_record(self._path)
