"""Making a lazy image of an image: the same files, in layers that can be read one file at a time.

The whole is under one lease; the record of the new image is made in the transaction that drops it.
A conversion that fails or is killed leaves nothing that a collection does not take.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from lamina.core.cancel import check_cancelled
from lamina.core.digest import Digest, sha256
from lamina.core.labels import UNCOMPRESSED
from lamina.errors import DigestMismatch, NotFound
from lamina.formats.compression import decompress
from lamina.formats.estargz.annotations import (
    CHUNKED_DIGESTS,
    CHUNKED_POSITIONS,
    PREFIXES,
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
)
from lamina.formats.estargz.writer import BlobFormat, BlobOptions, WrittenBlob, write_blob
from lamina.images.catalogue import Image
from lamina.images.download import event
from lamina.images.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Platform,
    encode,
    is_foreign,
    is_layer,
)
from lamina.images.platform import default_platform
from lamina.images.progress import Progress, Silent, Stage
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, child_labels, images, read_image, select
from lamina.layer.blob import is_sniffed
from lamina.layer.limits import LayerLimits
from lamina.meta.leases import Resource

Prioritize = Callable[[PlatformImage], Sequence[Sequence[bytes] | None]]
"""Returns for each layer the paths that are wanted first; see `write_blob`."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert.

    Attributes:
        blob: format of the layers.
        platforms: which images; none means the machine's own platform.
        all_platforms: all images that there are.
        prioritize: what is wanted first; None for no landmarks.
        limits: bounds of each layer.
    """

    blob: BlobOptions = field(default_factory=BlobOptions)
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    prioritize: Prioritize | None = None
    limits: LayerLimits = field(default_factory=LayerLimits)


class ConvertedLayer(NamedTuple):
    """One layer.

    Attributes:
        source: what it was.
        target: what it has become; the same where it is not ours to convert.
        blob: what is in it; None where it was not converted.
    """

    source: Descriptor
    target: Descriptor
    blob: WrittenBlob | None


class Converted(NamedTuple):
    """What `convert` returns.

    Attributes:
        image: the new record.
        layers: of each image that was converted, by the digest of its new manifest; base first.
    """

    image: Image
    layers: Mapping[Digest, Sequence[ConvertedLayer]]


def convert(
    image: Image,
    name: str,
    *,
    store: ImageStore,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert an image whose blobs are here, and record the result under `name`.

    Nothing is unpacked. Equal images and options give equal bytes; see `formats.estargz.writer`.

    Args:
        image: from the catalogue.
        name: full reference of the new image; an older record of that name is replaced.
        store: has the content, and takes the new.
        options: how.
        progress: told how far each layer is.

    Raises:
        NotFound: a blob is not here, or there is no image for a platform.
        DigestMismatch: a layer is not what the configuration says.
        FormatError: a layer is damaged.
        NotImplementedHere: a layer has what the format cannot say.
        ResourceExhausted: a limit is exceeded, or the disk is full.
        InvalidArgument: an option is out of range, or the image is no image of file systems.
        Cancelled: see `core.cancel`.
    """
    options = options or ConvertOptions()
    options.blob.codec()  # what is wrong with them is told before anything is read
    sources = list(_sources(image, store, options))
    for source in sources:
        _require_blobs(source, store, image.name)
    lease = store.leases.create(owned=True).id
    try:
        conversion = _Conversion(store, lease, options, progress or Silent())
        made = [conversion.image(source) for source in sources]
        target = conversion.top([manifest for manifest, _ in made])
        with store.database.write() as connection:
            record = store.catalogue.put_in(connection, name, target, {})
            store.leases.drop(connection, lease)
    except BaseException:
        store.leases.delete(lease)
        raise
    return Converted(record, {manifest.digest: layers for manifest, layers in made})


def _sources(image: Image, store: ImageStore, options: ConvertOptions) -> Iterator[PlatformImage]:
    """Yield the images to convert, each once."""
    if options.all_platforms:
        for descriptor in images(image.target, store.read):
            yield read_image(descriptor, store.read)
        return
    seen: set[Digest] = set()
    for platform in options.platforms or (default_platform(),):
        found = select(image.target, platform, store.read)
        if found.descriptor.digest not in seen:
            seen.add(found.descriptor.digest)
            yield found


def _require_blobs(source: PlatformImage, store: ImageStore, name: str) -> None:
    missing = [blob for blob in source.manifest.layers if not store.content.has(blob.digest)]
    if missing:
        hint = f"fetch it: lamina images pull --no-unpack {name}"
        what = f"content to convert ({len(missing)} layers are not here), such as"
        raise NotFound(what, missing[0].digest, hint=hint)


class _Conversion:
    def __init__(
        self, store: ImageStore, lease: str, options: ConvertOptions, progress: Progress
    ) -> None:
        self._store = store
        self._lease = lease
        self._options = options
        self._progress = progress
        self._done: dict[tuple[Digest, tuple[bytes, ...] | None], ConvertedLayer] = {}

    def image(self, source: PlatformImage) -> tuple[Descriptor, list[ConvertedLayer]]:
        """Convert one image; return its new manifest, and its layers."""
        wanted = self._wanted(source)
        layers = [
            self._layer(layer, diff_id, paths)
            for layer, diff_id, paths in zip(
                source.manifest.layers, source.config.rootfs.diff_ids, wanted, strict=True
            )
        ]
        config = self._config(source, layers)
        manifest = msgspec.structs.replace(
            source.manifest,
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=config,
            layers=tuple(layer.target for layer in layers),
        )
        descriptor = self._put(encode(manifest), OCI_MANIFEST, child_labels(manifest))
        platform = source.descriptor.platform or source.config.platform
        return msgspec.structs.replace(descriptor, platform=platform), layers

    def top(self, manifests: Sequence[Descriptor]) -> Descriptor:
        """Return what the new record points at: the only image, or an index of them."""
        if len(manifests) == 1:
            return msgspec.structs.replace(manifests[0], platform=None)
        index = Index(schema_version=2, media_type=OCI_INDEX, manifests=tuple(manifests))
        return self._put(encode(index), OCI_INDEX, child_labels(index))

    def _wanted(self, source: PlatformImage) -> Sequence[Sequence[bytes] | None]:
        if self._options.prioritize is None:
            return [None] * len(source.manifest.layers)
        return self._options.prioritize(source)

    def _layer(
        self, layer: Descriptor, diff_id: Digest, paths: Sequence[bytes] | None
    ) -> ConvertedLayer:
        """Convert a layer, once for all places where it is to be the same."""
        key = layer.digest, None if paths is None else tuple(paths)
        if key not in self._done:
            if is_foreign(layer.media_type) or not is_layer(layer.media_type):
                self._done[key] = ConvertedLayer(layer, layer, None)
            else:
                self._done[key] = self._convert(layer, diff_id, paths)
        return self._done[key]

    def _convert(
        self, layer: Descriptor, diff_id: Digest, paths: Sequence[bytes] | None
    ) -> ConvertedLayer:
        def advance(done: int, total: int) -> None:
            check_cancelled()
            offset = layer.size * done // max(total, 1)
            self._progress.update(event(layer, Stage.CONVERTING, offset))

        self._progress.update(event(layer, Stage.CONVERTING))
        content, limits = self._store.content, self._options.limits
        with (
            content.open(layer.digest) as blob,
            content.open_writer(f"convert-{secrets.token_hex(8)}") as writer,
        ):
            try:
                chunks = decompress(blob.read, sniff=is_sniffed(layer.media_type))
                written = write_blob(
                    _checked(chunks, layer, diff_id),
                    writer.write,
                    temporary=content.root,
                    options=self._options.blob,
                    prioritized=paths,
                    max_entries=limits.max_entries,
                    max_bytes=limits.max_bytes,
                    advance=advance,
                )
                self._hold(written.digest)
                writer.commit({UNCOMPRESSED: written.diff_id})
            except BaseException:
                writer.abort()
                raise
        self._progress.update(event(layer, Stage.DONE, layer.size))
        return ConvertedLayer(layer, self._describe(layer, written), written)

    def _describe(self, layer: Descriptor, written: WrittenBlob) -> Descriptor:
        annotations = {
            key: value for key, value in layer.annotations.items() if not key.startswith(PREFIXES)
        }
        annotations[TOC_DIGEST] = written.toc_digest
        annotations[UNCOMPRESSED_SIZE] = str(written.uncompressed_size)
        media_type = OCI_LAYER_GZIP
        if self._options.blob.format is BlobFormat.ZSTD_CHUNKED:
            media_type = OCI_LAYER_ZSTD
            place = (written.toc_offset, written.toc_packed_size, written.toc_size, 1)
            annotations |= dict.fromkeys(CHUNKED_DIGESTS, written.toc_packed_digest)
            annotations |= dict.fromkeys(CHUNKED_POSITIONS, ":".join(map(str, place)))
        return Descriptor(media_type, written.digest, written.size, annotations)

    def _config(self, source: PlatformImage, layers: Iterable[ConvertedLayer]) -> Descriptor:
        """Store the configuration with the new diff ids; fields unknown to us are kept."""
        config = json.loads(self._store.read(source.manifest.config))
        old = source.config.rootfs.diff_ids
        config["rootfs"]["diff_ids"] = [
            layer.blob.diff_id if layer.blob else diff_id
            for layer, diff_id in zip(layers, old, strict=True)
        ]
        return self._put(json.dumps(config, separators=(",", ":")).encode(), OCI_CONFIG, {})

    def _put(self, data: bytes, media_type: str, labels: Mapping[str, str]) -> Descriptor:
        descriptor = Descriptor(media_type, sha256(data), len(data))
        self._hold(descriptor.digest)
        self._store.content.put(data, descriptor)
        self._store.content.label(descriptor.digest, labels)
        return descriptor

    def _hold(self, digest: Digest) -> None:
        self._store.leases.add(self._lease, [Resource.content(digest)])


def _checked(chunks: Iterable[bytes], layer: Descriptor, diff_id: Digest) -> Iterator[bytes]:
    """Pass a layer's tar on; at its end, compare it with the configuration.

    Raises:
        DigestMismatch: it is another.
    """
    algorithm, _, _ = diff_id.partition(":")
    hashed = hashlib.new(algorithm)
    for chunk in chunks:
        check_cancelled()
        hashed.update(chunk)
        yield chunk
    got = f"{algorithm}:{hashed.hexdigest()}"
    if got != diff_id:
        raise DigestMismatch("check diff id of layer", layer.digest, expected=diff_id, got=got)
