"""A Nydus image: its bootstrap read and laid out, and what fills the device of each blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import NotImplementedHere
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.blob_meta import BlobMeta, read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.flags import BlobFeatures, ChunkFlags, Compressor, Digester, damaged
from lamina.formats.rafs.model import UNKNOWN, Blob, Bootstrap
from lamina.formats.rafs.toc import BLOB_DIGEST, read_toc, read_toc_entry
from lamina.formats.rafs.tree import steers_overlay, to_tree
from lamina.formats.rafs.units import (
    DeviceLayout,
    Layout,
    inodes,
    lay_out_v5,
    lay_out_v6,
    needs_meta,
)
from lamina.formats.rafs.units import Unit as RafsUnit
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.sources.file import FileSource
from lamina.lazy.unit import Check, Codec, Piece, Unit
from lamina.snapshotters.nydus.blobs import BlobPlan

_CODECS = {
    Compressor.NONE: Codec.NONE,
    Compressor.LZ4_BLOCK: Codec.LZ4_BLOCK,
    Compressor.GZIP: Codec.GZIP,
    Compressor.ZSTD: Codec.ZSTD,
}
_CHECKS = {Digester.BLAKE3: Check.BLAKE3, Digester.SHA256: Check.SHA256}
_UNSUPPORTED = {
    BlobFeatures.TARFS: "its blobs are tars (tarfs): use the image that it was made from",
    BlobFeatures.EXTERNAL: "its data is in a backend beside the registry (external)",
}

Describe = Callable[[str, int], RegistryDescription]
"""Says where the blob is; its size in bytes as the bootstrap has it, else 0."""
OpenBlob = Callable[[str, int], RangeSource]
"""Opens the blob of a hexadecimal SHA-256; its size in bytes if the bootstrap knows, else 0."""


class Contents(NamedTuple):
    """An image whose bootstrap was read.

    Attributes:
        bootstrap: what it says.
        layout: what fills the devices.
        is_mountable: the kernel mounts the bootstrap as it is.
    """

    bootstrap: Bootstrap
    layout: Layout
    is_mountable: bool


def read_contents(path: Path, open_blob: OpenBlob) -> Contents:
    """Read and lay out a bootstrap.

    Args:
        path: of the bootstrap.
        open_blob: for what the bootstrap itself does not say: where the chunks of batches and of
            gzip layers are, and digests.

    Raises:
        FormatError, DigestMismatch: it is damaged, or breaks a rule.
        NotImplementedHere: the image is of a kind that is not supported, which is named.
        LaminaError: as `open_blob`.
    """
    with closing(FileSource(path)) as source:
        bootstrap = read_bootstrap(source)
    for blob in bootstrap.blobs:
        _require_supported(blob)
    if bootstrap.version == 5:
        return Contents(bootstrap, lay_out_v5(bootstrap), False)
    metas, digests = _read_metas(bootstrap, open_blob)
    layout = lay_out_v6(bootstrap, metas, digests)
    return Contents(bootstrap, layout, not steers_overlay(bootstrap))


def write_image_of(contents: Contents, path: Path) -> None:
    """Write an image of a bootstrap's inodes, where the kernel does not mount it as it is."""
    with path.open("xb") as out:
        devices = [Device(device.size // BLOCK) for device in contents.layout.devices]
        write_image(to_tree(contents.bootstrap, contents.layout), out, devices=devices)


def units_of(device: DeviceLayout, digester: Digester) -> list[Unit]:
    """Return what fills a device, as the lazy core takes it."""
    check = _CHECKS[digester]
    return [
        Unit(
            *unit[:4],
            _codec(unit),
            [Piece(*piece[:3], check, piece.digest) for piece in unit.pieces],
        )
        for unit in device.units
    ]


def _codec(unit: RafsUnit) -> Codec:
    return _CODECS[unit.compressor] if unit.context is None else Codec.ZRAN


def _require_supported(blob: Blob) -> None:
    for feature, reason in _UNSUPPORTED.items():
        if blob.features & feature:
            raise NotImplementedHere("serve a Nydus image:", blob.id, hint=reason)


def _read_metas(
    bootstrap: Bootstrap, open_blob: OpenBlob
) -> tuple[Mapping[int, BlobMeta], Mapping[int, bytes]]:
    """Read `blob.meta` and `blob.digest` where the bootstrap does not say what they do."""
    unplaced, unverified = _unknown(bootstrap)
    metas: dict[int, BlobMeta] = {}
    digests: dict[int, bytes] = {}
    for index, blob in enumerate(bootstrap.blobs):
        wanted = needs_meta(blob) or index in unplaced
        if not blob.chunk_count or not (wanted or index in unverified):
            continue
        source = _source_of_meta(blob, open_blob)
        metas[index] = read_blob_meta(source, blob)
        if index in unverified:
            digests[index] = _read_digests(source, blob)
    return metas, digests


def _unknown(bootstrap: Bootstrap) -> tuple[set[int], set[int]]:
    """Return the blobs some of whose chunks have no place, and those with some without digest."""
    unplaced: set[int] = set()
    unverified: set[int] = set()
    for inode in inodes(bootstrap.root):
        for _, chunk in inode.chunks:
            if chunk.flags & ChunkFlags.HOLE:
                continue
            if chunk.compressed_offset == UNKNOWN:
                unplaced.add(chunk.blob)
            if not any(chunk.digest):
                unverified.add(chunk.blob)
    return unplaced, unverified


def _source_of_meta(blob: Blob, open_blob: OpenBlob) -> RangeSource:
    if blob.features & BlobFeatures.SEPARATE:
        return open_blob(blob.meta_digest.hex(), blob.meta_size)
    return open_blob(blob.id, _size(blob))


def _size(blob: Blob) -> int:
    """Return the bytes of a blob as they are in its registry; 0 where the bootstrap does not say.

    That of a builder before Nydus 2.2 has those of the data alone.
    """
    whole = BlobFeatures.SEPARATE | BlobFeatures.CAP_TAR_TOC
    return blob.compressed_size if blob.features & whole else 0


def _read_digests(source: RangeSource, blob: Blob) -> bytes:
    entry = read_toc(source, blob.toc_digest).get(BLOB_DIGEST)
    if entry is None or not any(blob.toc_digest) or not any(entry.digest):
        raise damaged(0, f"digests of the chunks of blob {blob.id}", "none that can be verified")
    return bytes(read_toc_entry(source, entry))


def plans_of(contents: Contents, describe: Describe) -> list[BlobPlan | None]:
    """Return what the caches are made of, by device; None for a device that nothing fills.

    Raises:
        FormatError: a chunk lies beyond the end of its blob.
        LaminaError: as `describe`.
    """
    bootstrap = contents.bootstrap
    plans: list[BlobPlan | None] = []
    for device in contents.layout.devices:
        if not device.units:
            plans.append(None)
            continue
        blob = bootstrap.blobs[device.blob]
        units = units_of(device, bootstrap.digester)
        found = [unit.context for unit in device.units if unit.context is not None]
        source = describe(blob.id, _size(blob))
        _require_inside(units, source)
        plans.append(BlobPlan(blob.id, source, device.size, units, found))
    return plans


def _require_inside(units: Sequence[Unit], source: RegistryDescription) -> None:
    end = max(unit.source_offset + unit.source_length for unit in units)
    if end > source.size:
        raise damaged(
            0, f"chunks in the {source.size} bytes of blob {source.digest}", f"byte {end}"
        )
