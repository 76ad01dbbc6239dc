"""Active snapshots whose changes are blocks of a device, and layers of these once committed.

ROOT/snapshots/ID/writable       what was written to the device: see `lamina.lazy.writable`
ROOT/snapshots/ID/writable.json  how it is given to whoever mounts it
ROOT/snapshots/ID/mnt            where it is mounted, in mode `dir`
ROOT/snapshots/ID/fs             the layer, once committed
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.linux.fstrim import trim_filesystem
from lamina.snapshotters.directories import make_directory
from lamina.snapshotters.lower_mounts import (
    is_mounted,
    is_older,
    locked,
    mount_once,
    unmount_all,
)
from lamina.snapshotters.overlaybd.labels import DEFAULT_FS, Mode
from lamina.snapshotters.overlaybd.mounting import is_backing
from lamina.snapshotters.overlaybd.notes import read_note, write_note
from lamina.snapshotters.stacked import bind
from lamina.snapshotters.tree import remove_tree

if TYPE_CHECKING:
    from lamina.formats.lsmt.stack import Stack
    from lamina.lazy.launch import LazyWorker

SEALED = "overlaybd.sealed"
"""The layer, in `fs`."""

_NOTE, _DEVICE = "writable.json", "writable"
_GIB = 1 << 30
_RELEASE_SECONDS, _LOOK_SECONDS = 5.0, 0.02
"""How long the kernel may take to let go of a loop device, which it flushes before."""


class WritableNote(msgspec.Struct, frozen=True):
    """How a device is given to whoever mounts it.

    Attributes:
        mode: as a directory, or as it is.
        filesystem: the type of what is on it.
        path: the file that it was mounted from last; "" before that.
    """

    mode: Mode
    filesystem: str
    path: str = ""


class Below(NamedTuple):
    """The device that a writable one changes.

    Attributes:
        cache: its cache.
        factory: what the worker opens that by.
        filesystem: the type of what is on it.
        size: bytes.
    """

    cache: Path
    factory: str
    filesystem: str
    size: int


class Writables:
    """The writable devices of a snapshotter.

    Args:
        worker: serves them.
    """

    def __init__(self, worker: LazyWorker) -> None:
        self._worker = worker

    def create(self, directory: Path, mode: Mode, below: Below | None, size: int) -> None:
        """Make the device of a new snapshot.

        Args:
            directory: the snapshot's.
            mode: how it is given.
            below: what it changes; None for a new filesystem, ext4.
            size: bytes of a device with nothing below.

        Raises:
            LaminaError: it cannot be served.
            OSError: it cannot be written.
        """
        from lamina.lazy.writable.directory import create_writable

        place = directory / _DEVICE
        if below is None:
            create_writable(place, size)
            self._make_filesystem(place, size)
        else:
            create_writable(place, below.size, lower=below.cache, factory=below.factory)
        make_directory(directory / "mnt", 0o755)
        write_note(directory, _NOTE, WritableNote(mode, below.filesystem if below else DEFAULT_FS))

    def mounts(self, directory: Path, options: Sequence[str]) -> list[Mount]:
        """Return how to mount a device, after having it served, and mounting it in mode `dir`.

        Raises:
            LaminaError: it cannot be served, or the kernel does not mount it.
        """
        note = _require_note(directory)
        path = self._served(directory, note)
        point = directory / "mnt"
        if note.mode == "dev":
            return [Mount(note.filesystem, str(path), options=("rw", *_options(note), "loop"))]
        mount_once(point, lambda: self._mount(note, path, point))
        if is_older(point, path.parent):  # everybody who served that one was killed
            with locked(point):
                if is_older(point, path.parent):
                    self._mount(note, path, point)
        return [bind(point, *options, "rw")]

    def seal(self, directory: Path, target: Path, below: Stack | None) -> None:
        """Write the layer of what was written to a device that nothing has mounted.

        Args:
            directory: the snapshot's.
            target: the layer.
            below: the layers below; None for none.

        Raises:
            FailedPrecondition: somebody has it mounted.
            LaminaError: it cannot be read, or is no layer that can be written.
            OSError: it cannot be written.
        """
        from lamina.formats.lsmt.layout import About
        from lamina.lazy.writable.sealing import seal_writable

        if is_mounted(directory / "mnt"):
            with contextlib.suppress(OSError):  # the layer is larger then, and right
                trim_filesystem(directory / "mnt")
        self.let_go(directory)
        about = About(parent_uuid=below.layers[-1].about.uuid) if below else About()
        seal_writable(directory / _DEVICE, target, about, below=below)

    def let_go(self, directory: Path) -> None:
        """Unmount a device, and have it served no more; one that is not there is no error.

        Raises:
            FailedPrecondition: somebody else has it mounted.
        """
        note = read_note(directory, _NOTE, WritableNote)
        if note is not None:
            unmount_all(directory / "mnt")
            _require_free(note, directory)
        if (directory / _DEVICE).exists():
            self._worker.remove(directory / _DEVICE)

    def settle(self, directory: Path) -> None:
        """Remove what a layer has been made of; nothing there is no error."""
        remove_tree(directory / _DEVICE)
        (directory / _NOTE).unlink(missing_ok=True)

    def _served(self, directory: Path, note: WritableNote) -> Path:
        path = self._worker.add_writable(directory / _DEVICE)
        if str(path) != note.path:
            write_note(directory, _NOTE, msgspec.structs.replace(note, path=str(path)))
        return path

    def _mount(self, note: WritableNote, path: Path, point: Path) -> None:
        from lamina.mount import mount_all

        options = ("rw", *_options(note), "loop", "direct-io")
        mount_all([Mount(note.filesystem, str(path), options=options)], point)

    def _make_filesystem(self, place: Path, size: int) -> None:
        from lamina.formats.ext4.layers import Ext4Layers
        from lamina.formats.tar import END_OF_ARCHIVE

        path = self._worker.add_writable(place)
        with path.open("r+b") as device:
            Ext4Layers(size, device).apply(iter([END_OF_ARCHIVE]))


def is_writable(directory: Path) -> bool:
    """Tell whether a snapshot has a device of its own, which is no layer yet."""
    return (directory / _NOTE).exists()


def written_bytes(directory: Path) -> int:
    """Return the bytes of disk that a snapshot's device takes."""
    from lamina.lazy.emptying import allocated

    return allocated(directory / _DEVICE)


def parse_size(text: str, label: str) -> int:
    """Return the bytes of a size in GiB.

    Raises:
        InvalidArgument: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise InvalidArgument(f"label {label}", text, hint="a number of GiB is needed")
    return int(text) * _GIB


def _options(note: WritableNote) -> tuple[str, ...]:
    return ("discard",) if note.filesystem == "ext4" else ("nouuid", "discard")


def _require_note(directory: Path) -> WritableNote:
    note = read_note(directory, _NOTE, WritableNote)
    if note is None:
        raise FailedPrecondition("find the writable device of", directory)
    return note


def _require_free(note: WritableNote, directory: Path) -> None:
    """Return once no loop device is on a device's file."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while note.path and is_backing(note.path):
        if time.monotonic() > deadline:
            hint = "unmount it, here and in other mount namespaces, and end what runs on it"
            raise FailedPrecondition(
                "let go of a device that is still mounted:", directory, hint=hint
            )
        time.sleep(_LOOK_SECONDS)
