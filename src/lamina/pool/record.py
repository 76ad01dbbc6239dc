"""What has been set up: one JSON file for each pool, and the lock that changes are made under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.errors import InvalidArgument, NotFound
from lamina.provision.record import locked, read_record, remove_record, write_record

DIRECTORY = "devmapper"
_ENDING = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A pool that was set up, or is being set up or torn down.

    Attributes:
        device: the name of its device, by which all know it.
        kind: the recipe.
        state: `making` until all of it is there; `removing` from when nothing of it is wanted.
        data_bytes: the size that was asked for, 0 where the recipe was to choose.
        metadata_bytes: the same of the metadata.
        directory: of the files of a pool on loop devices.
        group: the volume group of a pool in LVM.
        pool: its name there.
        disk: the disk of the volume group, as it was called then.
    """

    device: str
    kind: Literal["loop", "lvm"]
    state: Literal["making", "ready", "removing"] = "making"
    data_bytes: int = 0
    metadata_bytes: int = 0
    directory: str = ""
    group: str = ""
    pool: str = ""
    disk: str = ""


class Records:
    """The records below one root."""

    def __init__(self, root: Path) -> None:
        self.directory = root / DIRECTORY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everyone else from changing a pool for the body.

        Raises:
            Aborted: somebody else is at it.
        """
        with locked(self.directory, what="the pools of", command="lamina devmapper"):
            yield

    def all(self) -> list[Record]:
        """Return every record, by name."""
        paths = sorted(self.directory.glob(f"*{_ENDING}"))
        return [_read(path) for path in paths if not path.name.startswith(".")]

    def get(self, device: str) -> Record | None:
        """Return the record of that device's pool; None where there is none."""
        path = self._path(device)
        return _read(path) if path.exists() else None

    def find(self, name: str | None) -> Record:
        """Return the record of that name, of the device or inside its volume group.

        Args:
            name: None for the only one there is.

        Raises:
            NotFound: there is none.
            InvalidArgument: there are several.
        """
        everyone = self.all()
        found = [each for each in everyone if name in {None, each.device}]
        found = found or [each for each in everyone if name == each.pool]
        if len(found) == 1:
            return found[0]
        names = ", ".join(each.device for each in found or everyone)
        if found:
            raise InvalidArgument("choose a pool", hint=f"name one with --pool: {names}")
        hint = f"there are: {names}" if names else "make one with `lamina devmapper setup`"
        raise NotFound("find pool", name or "", hint=f"none was set up in this root; {hint}")

    def write(self, record: Record) -> None:
        """Write a record so that a power loss leaves it or the one before."""
        write_record(self._path(record.device), record)

    def remove(self, device: str) -> None:
        """Remove a record, for good."""
        remove_record(self._path(device))

    def _path(self, device: str) -> Path:
        return self.directory / f"{device}{_ENDING}"


def _read(path: Path) -> Record:
    return read_record(path, Record, without="remove the pool and its files by hand")
