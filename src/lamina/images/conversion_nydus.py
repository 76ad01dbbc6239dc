"""Nydus images: a blob for each layer that has data of its own, and one bootstrap of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lamina.core.digest import Digest
from lamina.core.labels import UNCOMPRESSED
from lamina.errors import InvalidArgument
from lamina.formats.estargz.annotations import PREFIXES as LAZY_PREFIXES
from lamina.formats.rafs.annotations import (
    BLOB,
    BLOB_MEDIA_TYPE,
    BOOTSTRAP,
    FS_VERSION,
    PREFIX,
    REF,
    REFERENCE_BLOB_IDS,
)
from lamina.formats.rafs.model import Inode
from lamina.formats.rafs.writer.bootstrap import write_bootstrap
from lamina.formats.rafs.writer.chunks import ChunkPool
from lamina.formats.rafs.writer.gzip_layer import GzipLayer, index_layer
from lamina.formats.rafs.writer.layer import write_layer
from lamina.formats.rafs.writer.layer_files import WrittenLayer
from lamina.formats.rafs.writer.merge import MergedTree
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tables import Tables, make_tables
from lamina.images.chunk_dictionary import ChunkDictionary
from lamina.images.content import ContentStore
from lamina.images.conversion_image import (
    MadeImage,
    Wanted,
    require_distributable,
    require_files,
)
from lamina.images.conversion_source import SourceLayers, left_out
from lamina.images.fetch import Fetcher
from lamina.images.gzip_scan import GzipScan
from lamina.images.ingest import Writer
from lamina.images.manifest import OCI_LAYER_GZIP, Descriptor, Platform
from lamina.images.nydus_documents import nydus_history, write_bootstrap_layer
from lamina.images.platform import normalize
from lamina.images.progress import Stage
from lamina.images.registry.cancel import Cancel
from lamina.images.tree import PlatformImage

_UNTRUE = (PREFIX, *LAZY_PREFIXES)
"""What annotations begin with that are about the source's blob."""


@dataclass(frozen=True, slots=True)
class NydusLayer:
    """A layer of a Nydus image, or one of its source that has no data of its own.

    Attributes:
        source: the layer as it was; None for the bootstrap, and for blobs of a chunk dictionary.
        target: what it became; None for one without data.
        chunks: of the files of the source's layer.
        new_chunks: those of them that the target has.
        prioritized: files that come first.
        warnings: what was left out, as sentences.
    """

    source: Descriptor | None
    target: Descriptor | None
    chunks: int = 0
    new_chunks: int = 0
    prioritized: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Image:
    """An image on its way."""

    pool: ChunkPool = field(default_factory=ChunkPool)
    tree: MergedTree = field(default_factory=MergedTree)
    layers: list[NydusLayer] = field(default_factory=list)
    prefetch: list[Inode] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    """By id: those that the bootstrap may name."""
    foreign: frozenset[str] = frozenset()
    """Ids of those that the chunk dictionary has brought."""


class NydusConverter:
    """Converts images of the content store.

    Args:
        content: gets blobs and bootstraps.
        fetcher: of the operation; its lease holds what is written.
        source: has the layers.
        options: of bootstrap and blobs.
        oci_ref: leave data in the source's layers, which have to be gzip.
        dictionary: returns the chunks for a platform that need not be written; None for none.
        threads: that compress; 0 for one for each processor.
        cancel: stops it from another thread.

    Attributes:
        converted: what was converted so far.
    """

    def __init__(
        self,
        content: ContentStore,
        fetcher: Fetcher,
        source: SourceLayers,
        options: RafsOptions,
        *,
        oci_ref: bool,
        dictionary: Callable[[Platform], ChunkDictionary] | None,
        threads: int,
        cancel: Cancel,
    ) -> None:
        self.converted: list[NydusLayer] = []
        self._content = content
        self._fetcher = fetcher
        self._source = source
        self._options = options
        self._oci_ref = oci_ref
        self._dictionary = dictionary
        self._threads = threads
        self._cancel = cancel

    def convert(self, image: PlatformImage, prioritized: Wanted) -> MadeImage:
        """Convert an image.

        Args:
            image: whose layers are in the store.
            prioritized: returns the files of a layer that are wanted first.

        Raises:
            InvalidArgument: it is a Nydus or overlaybd image, has a layer that must not be
                distributed, or the dictionary is of no use for it.
            NotFound: a layer's blob is not in the store.
            DigestMismatch: a layer is not what its image's configuration says.
            FormatError, ResourceExhausted: as `write_layer`.
        """
        require_files(image, "Nydus")
        require_distributable(image, "Nydus")
        making = _Image()
        if self._dictionary is not None:
            found = self._dictionary(normalize(image.config.platform))
            making.pool = found.pool
            making.blobs |= found.layers
            making.foreign = frozenset(found.layers)
        for layer, diff_id in zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True):
            self._add(making, layer, diff_id, prioritized(layer.digest) or ())
        root = making.tree.root
        if root is None:
            raise InvalidArgument(
                "convert an image without layers to Nydus", image.descriptor.digest
            )
        tables = make_tables(root, making.pool.blobs)
        bootstrap = self._write_bootstrap(image, making, root, tables)
        blobs = [making.blobs[blob.id] for blob in tables.blobs]
        layers = [_kept(layer, blobs) for layer in making.layers]
        foreign = [NydusLayer(None, making.blobs[id]) for id in _foreign(making, tables)]
        self.converted += [*foreign, *layers, NydusLayer(None, bootstrap[0])]
        return MadeImage(
            (*blobs, bootstrap[0]),
            (*(blob.digest for blob in blobs), bootstrap[1]),
            nydus_history(image, [layer.target is not None for layer in layers], len(foreign)),
        )

    def _add(
        self, making: _Image, layer: Descriptor, diff_id: Digest, prioritized: Sequence[bytes]
    ) -> None:
        self._source.tell(layer, Stage.CONVERTING)
        written = self._write_blob(making, layer, diff_id, prioritized)
        self._source.tell(layer, Stage.DONE, layer.size)
        making.tree.add(written)
        making.prefetch += written.prioritized
        target = None
        if written.blob is not None:
            annotations = {
                name: value
                for name, value in layer.annotations.items()
                if not name.startswith(_UNTRUE)
            }
            annotations[BLOB] = "true"
            if self._oci_ref:
                annotations[REF] = layer.digest
            size = written.blob.meta_size or written.blob.compressed_size
            target = Descriptor(BLOB_MEDIA_TYPE, written.digest, size, annotations=annotations)
            making.blobs[written.blob.id] = target
        making.layers.append(
            NydusLayer(
                layer,
                target,
                written.chunks,
                written.blob.chunk_count if written.blob else 0,
                len(written.prioritized),
                written.warnings,
            )
        )

    def _write_blob(
        self, making: _Image, layer: Descriptor, diff_id: Digest, prioritized: Sequence[bytes]
    ) -> WrittenLayer:
        # One writer at a time has the name, and what a killed one has left is written over.
        ref = f"convert-nydus-{self._options.version}-{layer.digest}"
        write = self._index if self._oci_ref else self._write
        with self._content.open_writer(ref, cancel=self._cancel) as writer:
            try:
                written = write(making, layer, diff_id, prioritized, writer)
                if written.blob is None:
                    writer.abort()
                else:
                    self._fetcher.hold([Descriptor("", written.digest, 0)])
                    writer.commit({UNCOMPRESSED: written.digest})
            except BaseException:
                writer.abort()
                raise
        return written

    def _write(
        self,
        making: _Image,
        layer: Descriptor,
        diff_id: Digest,
        prioritized: Sequence[bytes],
        writer: Writer,
    ) -> WrittenLayer:
        limits = self._source.limits
        with self._source.tar(layer, diff_id) as tar:
            return write_layer(
                tar,
                writer.write,
                temporary=self._content.root,
                pool=making.pool,
                options=self._options,
                lower=making.tree.directory if making.tree.root else None,
                leave_out=left_out(layer),
                prioritized=prioritized,
                threads=self._threads,
                max_entries=limits.max_entries,
                max_bytes=limits.max_bytes,
                advance=lambda done, total: self._source.tell(
                    layer, Stage.CONVERTING, layer.size * done // total
                ),
            )

    def _index(
        self,
        making: _Image,
        layer: Descriptor,
        diff_id: Digest,
        prioritized: Sequence[bytes],
        writer: Writer,
    ) -> WrittenLayer:
        """Write where the chunks of a gzip layer are in it."""
        limits = self._source.limits
        scan = GzipScan(layer)
        with self._source.tar(layer, diff_id, scan.unpack) as tar:
            return index_layer(
                tar,
                scan.result,
                writer.write,
                layer=GzipLayer(layer.digest.partition(":")[2], layer.size),
                pool=making.pool,
                options=self._options,
                lower=making.tree.directory if making.tree.root else None,
                leave_out=left_out(layer),
                prioritized=prioritized,
                max_entries=limits.max_entries,
                max_bytes=limits.max_bytes,
            )

    def _write_bootstrap(
        self, image: PlatformImage, making: _Image, root: Inode, tables: Tables
    ) -> tuple[Descriptor, Digest]:
        """Return the layer with the bootstrap, and its diff id."""
        ref = f"convert-nydus-{self._options.version}-{image.descriptor.digest}"
        with self._content.open_writer(ref, cancel=self._cancel) as writer:
            try:
                diff_id = write_bootstrap_layer(
                    lambda file: write_bootstrap(
                        root, tables, file, self._options, making.prefetch
                    ),
                    writer.write,
                    temporary=self._content.root,
                )
                self._fetcher.hold([Descriptor("", writer.digest, 0)])
                digest = writer.commit({UNCOMPRESSED: diff_id})
            except BaseException:
                writer.abort()
                raise
        annotations = {BOOTSTRAP: "true", FS_VERSION: str(self._options.version)}
        if foreign := _foreign(making, tables):
            annotations[REFERENCE_BLOB_IDS] = json.dumps(foreign)
        size = self._content.info(digest).size
        return Descriptor(OCI_LAYER_GZIP, digest, size, annotations=annotations), diff_id


def _foreign(making: _Image, tables: Tables) -> list[str]:
    """Return the ids of the chunk dictionary's blobs that the image needs."""
    return [blob.id for blob in tables.blobs if blob.id in making.foreign]


def _kept(layer: NydusLayer, blobs: Sequence[Descriptor]) -> NydusLayer:
    """Return a layer; one without blob if no file that the image shows needs it."""
    return layer if layer.target in blobs else replace(layer, target=None)
