"""Whether a Nydus image is sound: its bootstrap, its blobs, and every chunk, without a registry."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from lamina.core.digest import Digest, algorithm, parse_digest
from lamina.errors import DataLoss, DigestMismatch, InvalidArgument, LaminaError, NotFound
from lamina.formats.rafs.blob_meta import BlobMeta, read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.digests import digest_of
from lamina.formats.rafs.flags import BlobFeatures
from lamina.formats.rafs.model import Blob, Bootstrap
from lamina.formats.rafs.toc import BLOB_DIGEST, IMAGE_BLOB, read_toc, read_toc_entry
from lamina.formats.rafs.units import (
    DeviceLayout,
    Layout,
    Unit,
    decode_unit,
    lay_out_v5,
    lay_out_v6,
)
from lamina.images.blob_source import FileSource, open_blob
from lamina.images.content import ContentStore
from lamina.images.manifest import Descriptor, Manifest
from lamina.images.nydus import blob_layers, bootstrap_layer, open_bootstrap
from lamina.images.registry.cancel import Cancel

_AT_ONCE = 64
"""Chunks that wait for a thread at most."""
_WHAT = "verify Nydus image"


def verify_nydus(
    content: ContentStore, manifest: Manifest, *, cancel: Cancel | None = None
) -> list[str]:
    """Decompress and verify all that a Nydus image has; return what is wrong, as sentences.

    The bootstrap's layer has to have its digest, and of version 5 each inode too. Each blob
    that it names has to be a layer of the manifest and in the store, with its size, its table of
    contents and its `blob.meta`. Each chunk that a file has must have its digest.

    Args:
        content: has the blobs.
        manifest: of the image.
        cancel: stops it from another thread.

    Raises:
        InvalidArgument: it is no Nydus image.
        Cancelled: told to stop.
    """
    layer = bootstrap_layer(manifest)
    if layer is None:
        raise InvalidArgument("verify what is no Nydus image")
    checking = _Check(content, manifest, cancel or Cancel())
    try:
        _check_layer(content, layer)
        with open_bootstrap(content, layer) as source:
            bootstrap = read_bootstrap(source)
    except (DataLoss, DigestMismatch, NotFound) as error:
        return [f"bootstrap: {error}"]
    checking.run(bootstrap)
    return checking.faults


def _check_layer(content: ContentStore, layer: Descriptor) -> None:
    """Compare the bootstrap's layer with its digest: version 6 has none of its own."""
    with open(content.path(layer.digest), "rb") as file:
        name = algorithm(layer.digest)
        got = f"{name}:{hashlib.file_digest(file, name).hexdigest()}"
    if got != layer.digest:
        raise DigestMismatch(_WHAT, "layer", expected=layer.digest, got=got)


class _Check:
    def __init__(self, content: ContentStore, manifest: Manifest, cancel: Cancel) -> None:
        self.faults: list[str] = []
        self._content = content
        self._layers = blob_layers(manifest)
        self._cancel = cancel

    def run(self, bootstrap: Bootstrap) -> None:
        metas: dict[int, BlobMeta] = {}
        digests: dict[int, bytes] = {}
        for index, blob in enumerate(bootstrap.blobs):
            try:
                self._check_blob(blob)
                self._read_tables(index, blob, metas, digests)
            except LaminaError as error:
                self.faults.append(f"blob {blob.id}: {error}")
        if self.faults:
            return
        try:
            layout = _lay_out(bootstrap, metas, digests)
        except LaminaError as error:
            self.faults.append(str(error))
            return
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lamina-verify") as executor:
            for device in layout.devices:
                self._check_device(bootstrap, device, executor)

    def _check_blob(self, blob: Blob) -> None:
        if _place_of_tables(blob) not in self._layers:
            raise NotFound("layer of the manifest for blob", _place_of_tables(blob))
        try:
            size = self._content.info(_digest(blob.id)).size
        except NotFound as error:
            if blob.features & BlobFeatures.SEPARATE:
                error.hint = "it is a layer of the image that this was made of: pull that, too"
            raise
        # The builder of Nydus does not count a bootstrap that a blob of one layer has, too.
        if size < blob.compressed_size:
            expected = f"{blob.compressed_size} bytes at least"
            raise DigestMismatch(_WHAT, "size of a blob", expected=expected, got=f"{size} bytes")

    def _read_tables(
        self, index: int, blob: Blob, metas: dict[int, BlobMeta], digests: dict[int, bytes]
    ) -> None:
        """Read what a blob has behind its chunks, and compare what has a digest."""
        with open_blob(self._content, _digest(_place_of_tables(blob))) as source:
            if blob.features & BlobFeatures.HAS_TOC:
                toc = read_toc(source, blob.toc_digest)
                for entry in toc.values():
                    if entry.name == IMAGE_BLOB:
                        continue
                    data = read_toc_entry(source, entry)
                    if entry.name == BLOB_DIGEST:
                        digests[index] = bytes(data)
            if blob.meta is not None:
                metas[index] = read_blob_meta(source, blob)

    def _check_device(
        self, bootstrap: Bootstrap, device: DeviceLayout, executor: ThreadPoolExecutor
    ) -> None:
        blob = bootstrap.blobs[device.blob]
        with open_blob(self._content, _digest(blob.id)) as source:

            def check(unit: Unit) -> str:
                return _check_unit(bootstrap, source, unit)

            for units in _batches(device):
                self._cancel.check("verify blob", blob.id)
                found = filter(None, executor.map(check, units))
                self.faults += [f"blob {blob.id}: {fault}" for fault in found]


def _place_of_tables(blob: Blob) -> str:
    """Return the id of the blob with `blob.meta`, which is a layer where the data is none."""
    return blob.meta_digest.hex() if blob.features & BlobFeatures.SEPARATE else blob.id


def _lay_out(
    bootstrap: Bootstrap, metas: Mapping[int, BlobMeta], digests: Mapping[int, bytes]
) -> Layout:
    return (
        lay_out_v5(bootstrap) if bootstrap.version == 5 else lay_out_v6(bootstrap, metas, digests)
    )


def _batches(device: DeviceLayout) -> Iterator[list[Unit]]:
    units = iter(device.units)
    while batch := list(islice(units, _AT_ONCE)):
        yield batch


def _check_unit(bootstrap: Bootstrap, source: FileSource, unit: Unit) -> str:
    """Return what is wrong with a unit; "" for nothing."""
    try:
        data = decode_unit(unit, source.read_at(unit.source_offset, unit.source_length))
    except LaminaError as error:
        return str(error)
    for inner, length, _offset, digest in unit.pieces:
        got = digest_of(bootstrap.digester, memoryview(data)[inner : inner + length])
        if got != digest:
            place = f"chunk at byte {unit.source_offset}"
            return f"{place}: expected digest {digest.hex()}, got {got.hex()}"
    return ""


def _digest(id: str) -> Digest:
    return parse_digest(f"sha256:{id}")
