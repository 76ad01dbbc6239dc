"""Opening the layers of a device, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.source import RangeSource
from lamina.errors import DataLoss
from lamina.formats.lsmt.reader import Layer, open_layer
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.sources.file import FileSource
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import (
    login_hint,
    open_source,
    size_in_registry,
)
from lamina.snapshotters.overlaybd.kept_source import Keeper, KeptSource
from lamina.snapshotters.overlaybd.labels import Blob
from lamina.snapshotters.overlaybd.notes import LAYER, BlobNote, LayerNote, read_note

KEPT = "kept"
Closer = Callable[[], None]


def keep_layer(directory: Path, access: Access, blob: Blob) -> BlobNote:
    """Read what a blob says of itself, and keep that in a directory.

    Raises:
        FormatError: it is no overlaybd layer, or a damaged one.
        LaminaError: as the registry raises.
        OSError: it cannot be kept.
    """
    access = access._replace(plain_http=blob.plain_http)
    with login_hint():
        note = _sized(access, blob)
        keeper = Keeper(_blob_source(access, note))
        open_layer(keeper)
    keeper.write(directory / KEPT)
    return note


def open_noted(directory: Path, access: Access) -> tuple[Layer, Closer]:
    """Open the layer of a snapshot's directory, and return what lets go of it.

    Raises:
        DataLoss: what is known of it is gone or damaged.
        FormatError: it is damaged.
        LaminaError: as the registry raises.
    """
    note = read_note(directory, LAYER, LayerNote)
    if note is None:
        raise DataLoss("open overlaybd layer", directory, hint="pull the image again")
    match note.kind:
        case "remote":
            return _open_remote(directory, access, note), _nothing
        case "local":
            return _open_file(directory / note.file)
        case _:
            raise DataLoss(f"open overlaybd layer of kind {note.kind}", directory)


def _open_remote(directory: Path, access: Access, note: LayerNote) -> Layer:
    if note.blob is None:
        raise DataLoss("find the blob of overlaybd layer", directory)
    opener = partial(_blob_source, access, note.blob)
    source = KeptSource(directory / KEPT, note.blob.size, opener)
    layer = open_layer(source)
    source.forget()
    return layer


def _open_file(path: Path) -> tuple[Layer, Closer]:
    source = FileSource(path)
    try:
        return open_layer(source), source.close
    except BaseException:
        source.close()
        raise


def is_layer_file(path: Path) -> bool:
    """Tell whether a file is a layer of a device, by its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    from lamina.formats.lsmt.reader import is_layer

    with closing(FileSource(path)) as source:
        return is_layer(source)


def _blob_source(access: Access, note: BlobNote) -> RangeSource:
    access = access._replace(plain_http=note.plain_http)
    return open_source(access, RegistryDescription(note.reference, note.digest, note.size))


def _sized(access: Access, blob: Blob) -> BlobNote:
    size = blob.size or size_in_registry(access, blob.reference, Digest(blob.digest))
    return BlobNote(blob.reference, blob.digest, size, blob.plain_http)


def _nothing() -> None:
    """Let go of nothing: connections are shared."""
