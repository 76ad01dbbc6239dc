"""Opening the layers of a device, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.source import RangeSource
from lamina.errors import DataLoss
from lamina.formats.gzip_index import read_gzip_index
from lamina.formats.gzip_source import GzipSource
from lamina.formats.lsmt.reader import Layer, is_layer, open_layer
from lamina.formats.lsmt.warp import open_warp
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.sources.file import FileSource
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.lazy_blobs import login_hint, open_source, size_in_registry
from lamina.snapshotters.overlaybd.kept_source import Keeper, KeptSource
from lamina.snapshotters.overlaybd.labels import Blob
from lamina.snapshotters.overlaybd.notes import LAYER, BlobNote, LayerNote, read_note
from lamina.snapshotters.overlaybd.on_demand import OnDemand, Report, untold

KEPT = "kept"
GZIP_INDEX = "gzip.meta"
"""Beside the metadata of a TurboOCI layer whose data is in a gzip layer."""


def keep_layer(directory: Path, access: Access, blob: Blob) -> BlobNote:
    """Read what a blob says of itself, and keep that in a directory.

    Raises:
        FormatError: it is no overlaybd layer, or a damaged one.
        LaminaError: as the registry raises.
        OSError: it cannot be kept.
    """
    with login_hint():
        note = noted_blob(access, blob)
        keeper = Keeper(_in_registry(access, note))
        open_layer(keeper)
    keeper.write(directory / KEPT)
    return note


def noted_blob(access: Access, blob: Blob) -> BlobNote:
    """Return what to note of a blob; its registry is asked for its size where no label tells.

    Raises:
        LaminaError: as the registry raises.
    """
    there = access._replace(plain_http=blob.plain_http)
    size = blob.size or size_in_registry(there, blob.reference, blob.digest)
    return BlobNote(blob.reference, blob.digest, size, blob.plain_http)


def open_noted(
    directory: Path, access: Access, report: Report = untold
) -> tuple[Layer, Callable[[], None]]:
    """Open the layer of a snapshot's directory, and return what lets go of it.

    Args:
        directory: the snapshot's.
        access: how to reach the registry.
        report: is told what is read from there.

    Raises:
        DataLoss: what is known of it is gone or damaged.
        FormatError: it is damaged.
        LaminaError: as the registry raises.
    """
    note = read_note(directory, LAYER, LayerNote)
    if note is None:
        raise DataLoss("open overlaybd layer", directory, hint="pull the image again")
    with ExitStack() as held:
        match note.kind:
            case "remote":
                layer = _open_remote(directory, _demanded(access, note, report))
            case "local":
                layer = open_layer(_file(held, directory / note.file))
            case "turbo":
                layer = _open_turbo(held, directory / note.file, note, access, report)
            case "trace":
                raise DataLoss("open as a layer of a device what is a trace:", directory)
        return layer, held.pop_all().close


def is_layer_file(path: Path) -> bool:
    """Tell whether a file is a layer of a device, by its first bytes.

    Raises:
        Unavailable: it cannot be read.
    """
    with closing(FileSource(path)) as source:
        return is_layer(source)


def _open_remote(directory: Path, blob: OnDemand) -> Layer:
    source = KeptSource(directory / KEPT, blob)
    layer = open_layer(source)
    source.forget()
    return layer


def _open_turbo(
    held: ExitStack, path: Path, note: LayerNote, access: Access, report: Report
) -> Layer:
    meta = _file(held, path)
    target: RangeSource = _demanded(access, note, report)
    if note.is_gzip:
        index = read_gzip_index(_file(held, path.with_name(GZIP_INDEX)))
        target = GzipSource(target, index)
    return open_warp(meta, target)


def _file(held: ExitStack, path: Path) -> FileSource:
    source = FileSource(path)
    held.callback(source.close)
    return source


def _demanded(access: Access, note: LayerNote, report: Report) -> OnDemand:
    if note.blob is None:
        raise DataLoss("find the blob of an overlaybd layer", "its note names none")
    return OnDemand(note.blob.size, partial(_in_registry, access, note.blob), report)


def _in_registry(access: Access, note: BlobNote) -> RangeSource:
    there = access._replace(plain_http=note.plain_http)
    description = RegistryDescription(note.reference, Digest(note.digest), note.size)
    return open_source(there, description)
