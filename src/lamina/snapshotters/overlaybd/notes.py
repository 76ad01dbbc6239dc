"""What is kept beside layers and devices, as JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from lamina.errors import DataLoss

LAYER, DEVICE, BACKING = "layer.json", "device.json", "backing.json"
LayerKind = Literal["remote", "local", "turbo", "trace"]
_Note = TypeVar("_Note", bound=msgspec.Struct)


class BlobNote(msgspec.Struct, frozen=True):
    """A blob in a registry; see `labels.Blob`."""

    reference: str
    digest: str
    size: int
    plain_http: bool = False


class LayerNote(msgspec.Struct, frozen=True):
    """A layer that is part of a device.

    Attributes:
        kind: where it is. `remote`: in a registry, apart from what `kept` has. `local`: in `file`.
            `turbo`: its metadata is in `file`, its data in a layer of another image. `trace`: it
            has nothing for the device, but says what is read first.
        below: ids of the snapshots whose layers are below it on the device, the lowest first.
        filesystem: the type of what is on the device.
        file: in the layer's directory; "" for none.
        blob: the blob, or the layer that the data is in.
        is_gzip: whether that layer is compressed.
    """

    kind: LayerKind
    below: tuple[int, ...]
    filesystem: str
    file: str = ""
    blob: BlobNote | None = None
    is_gzip: bool = False


class DeviceNote(msgspec.Struct, frozen=True):
    """A device.

    Attributes:
        layers: ids of the snapshots whose layers it is made of, the lowest first.
        filesystem: the type of what is on it.
        size: bytes, as the layers say.
        wanted: the file that lists which files are to be fetched first; "" for none.
    """

    layers: tuple[int, ...]
    filesystem: str
    size: int
    wanted: str = ""


class BackingNote(msgspec.Struct, frozen=True):
    """Where a device is mounted from: files, or block devices."""

    paths: tuple[str, ...] = ()


def write_note(directory: Path, name: str, note: msgspec.Struct) -> None:
    """Keep a note in a directory, in place of an older one; whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    new = directory / f".{name}.{os.getpid()}"
    new.write_bytes(msgspec.json.encode(note))
    new.replace(directory / name)


def read_note(directory: Path, name: str, kind: type[_Note]) -> _Note | None:
    """Return a note; None where there is none.

    Raises:
        DataLoss: it is damaged.
    """
    path = directory / name
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"read what is known of an overlaybd layer: {error}", path) from error


def read_backing(directory: Path) -> BackingNote:
    """Return what a device was mounted from; nothing where no note tells.

    A note that is damaged is so after a power loss, since which nothing is mounted.
    """
    try:
        return read_note(directory, BACKING, BackingNote) or BackingNote()
    except DataLoss:
        return BackingNote()
