"""Layers as eStargz or zstd:chunked, each converted once however often an image has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lamina.core.digest import Digest
from lamina.core.labels import UNCOMPRESSED
from lamina.errors import InvalidArgument, NotImplementedHere
from lamina.formats.estargz.annotations import (
    CHUNKED_DIGESTS,
    CHUNKED_POSITIONS,
    PREFIXES,
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
)
from lamina.formats.estargz.writer import BlobFormat, BlobOptions, WrittenBlob, write_blob
from lamina.formats.overlaybd.annotations import BLOB_DIGEST
from lamina.formats.rafs.annotations import BLOB
from lamina.images.content import ContentStore
from lamina.images.conversion_source import SourceLayers
from lamina.images.fetch import Fetcher
from lamina.images.manifest import (
    DOCKER_FOREIGN,
    DOCKER_LAYER,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_NONDISTRIBUTABLE,
    Descriptor,
    is_foreign,
)
from lamina.images.progress import Stage
from lamina.images.registry.cancel import Cancel

_CRFS = 1
"""The type of TOC that zstd:chunked has."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """What became of a layer.

    Attributes:
        source: the layer as it was.
        target: as it is now.
        diff_id: of its tar now.
        blob: what was written; None for a layer that is as it was.
        kept: why it is as it was; "" for one that is not.
    """

    source: Descriptor
    target: Descriptor
    diff_id: Digest
    blob: WrittenBlob | None
    kept: str = ""


class LayerConverter:
    """Converts layers of the content store.

    Args:
        content: gets the new layers.
        fetcher: of the operation; its lease holds what is written.
        source: has the layers.
        options: of the blobs.
        threads: that compress; 0 for one for each processor.
        cancel: stops it from another thread.
    """

    def __init__(
        self,
        content: ContentStore,
        fetcher: Fetcher,
        source: SourceLayers,
        options: BlobOptions,
        *,
        threads: int,
        cancel: Cancel,
    ) -> None:
        self._content = content
        self._fetcher = fetcher
        self._source = source
        self._options = options
        self._threads = threads
        self._cancel = cancel
        self._done: dict[Digest, ConvertedLayer] = {}

    @property
    def converted(self) -> tuple[ConvertedLayer, ...]:
        """What was converted so far."""
        return tuple(self._done.values())

    def convert(
        self, layer: Descriptor, diff_id: Digest, prioritized: Sequence[bytes] | None
    ) -> ConvertedLayer:
        """Convert a layer, unless that was done before.

        Foreign layers, and those that have what a TOC cannot say, stay as they are.

        Raises:
            InvalidArgument: it is a Nydus blob, or a layer of overlaybd's.
            NotFound: its blob is not in the store.
            DigestMismatch: it is not what its image's configuration says.
            FormatError, ResourceExhausted: as `write_blob`.
        """
        done = self._done.get(layer.digest)
        if done is None:
            done = self._done[layer.digest] = self._convert(layer, diff_id, prioritized)
        # Of the same content, each place in an image may have annotations of its own.
        annotations = {
            name: value
            for name, value in layer.annotations.items()
            if not done.blob or not name.startswith(PREFIXES)
        }
        target = msgspec.structs.replace(
            done.target, annotations=annotations | done.target.annotations
        )
        return ConvertedLayer(layer, target, done.diff_id, done.blob, done.kept)

    def _convert(
        self, layer: Descriptor, diff_id: Digest, prioritized: Sequence[bytes] | None
    ) -> ConvertedLayer:
        if is_foreign(layer.media_type):
            return _kept(layer, diff_id, "it must not be distributed")
        if BLOB in layer.annotations:
            hint = "it is a Nydus blob, without names: convert the image that it was made of"
            raise InvalidArgument("convert layer", layer.digest, hint=hint)
        if BLOB_DIGEST in layer.annotations:
            hint = "it is overlaybd's, without names: convert the image that it was made of"
            raise InvalidArgument("convert layer", layer.digest, hint=hint)
        self._source.tell(layer, Stage.CONVERTING)
        try:
            written = self._write(layer, diff_id, prioritized)
        except NotImplementedHere as error:
            return _kept(layer, diff_id, f"cannot {error.what}: {error.subject}")
        self._source.tell(layer, Stage.DONE, layer.size)
        is_gzip = self._options.format is BlobFormat.ESTARGZ
        target = Descriptor(
            OCI_LAYER_GZIP if is_gzip else OCI_LAYER_ZSTD,
            written.digest,
            written.size,
            annotations=_annotations(written, self._options.format),
        )
        return ConvertedLayer(layer, target, written.diff_id, written)

    def _write(
        self, layer: Descriptor, diff_id: Digest, prioritized: Sequence[bytes] | None
    ) -> WrittenBlob:
        # One writer at a time has the name, and what a killed one has left is written over.
        ref = f"convert-{self._options.format}-{layer.digest}"
        with (
            self._source.tar(layer, diff_id) as tar,
            self._content.open_writer(ref, cancel=self._cancel) as writer,
        ):
            try:
                written = write_blob(
                    tar,
                    writer.write,
                    temporary=self._content.root,
                    options=self._options,
                    prioritized=prioritized,
                    threads=self._threads,
                    max_entries=self._source.limits.max_entries,
                    max_bytes=self._source.limits.max_bytes,
                    advance=lambda done, total: self._source.tell(
                        layer, Stage.CONVERTING, layer.size * done // total
                    ),
                )
                self._fetcher.hold([Descriptor("", written.digest, written.size)])
                writer.commit({UNCOMPRESSED: written.diff_id})
            except BaseException:
                writer.abort()
                raise
        return written


def _kept(layer: Descriptor, diff_id: Digest, reason: str) -> ConvertedLayer:
    """Return a layer as it was, its type as OCI manifests have it."""
    media_type = layer.media_type
    for old, new in ((DOCKER_LAYER, OCI_LAYER), (DOCKER_FOREIGN, OCI_NONDISTRIBUTABLE)):
        if media_type.startswith(old):
            media_type = new + media_type.removeprefix(old).replace(".", "+")
    target = msgspec.structs.replace(layer, media_type=media_type)
    return ConvertedLayer(layer, target, diff_id, None, reason)


def _annotations(written: WrittenBlob, format: BlobFormat) -> dict[str, str]:
    said = {
        TOC_DIGEST: written.toc_digest,
        UNCOMPRESSED_SIZE: str(written.uncompressed_size),
    }
    if format is BlobFormat.ZSTD_CHUNKED:
        place = (written.toc_offset, written.toc_packed_size, written.toc_size, _CRFS)
        said |= dict.fromkeys(CHUNKED_DIGESTS, str(written.toc_packed_digest))
        said |= dict.fromkeys(CHUNKED_POSITIONS, ":".join(map(str, place)))
    return said
