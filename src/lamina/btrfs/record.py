"""What has been set up: one JSON file, and the lock that changes are made under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.errors import NotFound
from lamina.provision.record import locked, read_record, remove_record, write_record

DIRECTORY = "btrfs"

Quota = Literal["none", "simple", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A btrfs that was set up, or is being set up or torn down.

    Attributes:
        file: what it is in; absolute, without symlinks.
        size: of the file, in bytes.
        place: the snapshotter's directory, where it is mounted; as `file`.
        quota: the quotas that were asked for; "" for those that are best here.
        state: `making` until all of it is there; `removing` from when nothing of it is wanted.
    """

    file: str
    size: int
    place: str
    quota: Quota | Literal[""] = ""
    state: Literal["making", "ready", "removing"] = "making"


class Records:
    """The record below one root."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY
        self._path = self.directory / "setup.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everyone else from changing it for the body.

        Raises:
            Aborted: somebody else is at it.
        """
        with locked(self.directory, what="the btrfs of", command="lamina btrfs"):
            yield

    def get(self) -> Record | None:
        """Return the record; None where nothing was set up.

        Raises:
            DataLoss: it is damaged.
        """
        try:
            return read_record(
                self._path, Record, without="unmount the btrfs and remove its file by hand"
            )
        except FileNotFoundError:
            return None

    def find(self) -> Record:
        """Return the record.

        Raises:
            NotFound: nothing was set up.
        """
        record = self.get()
        if record is None:
            hint = "none was set up in this root; make one with `lamina btrfs setup --loop SIZE`"
            raise NotFound("find the btrfs of", self.directory.parent, hint=hint)
        return record

    def write(self, record: Record) -> None:
        """Write the record so that a power loss leaves it or the one before."""
        write_record(self._path, record)

    def remove(self) -> None:
        """Remove the record, for good."""
        remove_record(self._path)
