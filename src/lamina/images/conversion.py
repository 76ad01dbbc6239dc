"""Making an image lazy: the same files, in layers as eStargz or zstd:chunked, or as a Nydus or
overlaybd image.

Layers, and with them their diff ids, configuration, manifest and index are others than those of the
source, which stays as it is. All documents are OCI's, since Docker's cannot have the annotations
that tell what a table of contents has to be. Nothing is unpacked. The image is recorded when all of
it is in the store; an operation that fails before leaves no part of it but for the collector.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lamina.core.digest import Digest, sha256
from lamina.errors import InvalidArgument
from lamina.formats.estargz.writer import BlobOptions
from lamina.formats.rafs.flags import Compressor
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.images.catalogue import Image
from lamina.images.chunk_dictionary import ChunkDictionary, check_repository, read_dictionary
from lamina.images.conversion_image import ImageConverter, require_files
from lamina.images.conversion_layers import ConvertedLayer, LayerConverter
from lamina.images.conversion_nydus import NydusConverter, NydusLayer
from lamina.images.conversion_overlaybd import (
    OverlaybdConverter,
    OverlaybdLayer,
    OverlaybdOptions,
)
from lamina.images.conversion_source import SourceLayers, missing_layer
from lamina.images.manifest import (
    INDEX_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Platform,
    encode,
    is_foreign,
)
from lamina.images.operation import Operation, Options, operation
from lamina.images.platform import default_platform
from lamina.images.progress import Progress, Silent
from lamina.images.reference import Reference, parse
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, images, read_document, read_image, select
from lamina.layer.limits import LayerLimits

ALL_LAYERS = "*"
_IN_LAYERS = "leave the data of an image in its layers"

Prioritized = Mapping[str, Sequence[bytes]]
"""Paths that are wanted first, in order, by the digest of the source's layer or `ALL_LAYERS`."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert an image.

    Attributes:
        blob: how layers are written; without meaning for a Nydus or overlaybd image.
        nydus: makes a Nydus image of it.
        overlaybd: makes an overlaybd image of it; with neither of the two its layers stay apart.
        oci_ref: leave the data of a Nydus image in the source's layers, which have to be gzip, and
            in the same repository; not with a chunk dictionary.
        chunk_dict: name of a Nydus image of the same repository: chunks that it has are not written
            again; "" for none.
        platforms: which images of an index; none means the machine's own platform.
        all_platforms: all that an index lists.
        prioritized: which files come first, and are prefetched; a layer that is not named has none,
            and says so. None says nothing, and leaves it to the reader what to prefetch.
        labels: put on the image record.
        limits: bounds of each layer.
        threads: that compress; 0 for one for each processor.
    """

    blob: BlobOptions = field(default_factory=BlobOptions)
    nydus: RafsOptions | None = None
    overlaybd: OverlaybdOptions | None = None
    oci_ref: bool = False
    chunk_dict: str = ""
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    prioritized: Prioritized | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    limits: LayerLimits = field(default_factory=LayerLimits)
    threads: int = 0

    def prioritized_of(self, layer: Digest) -> Sequence[bytes] | None:
        """Return the paths for a layer; None for no landmark."""
        if self.prioritized is None:
            return None
        return self.prioritized.get(layer, self.prioritized.get(ALL_LAYERS, ()))


@dataclass(frozen=True, slots=True)
class Converted:
    """The outcome.

    Attributes:
        image: the new record.
        layers: what was converted, each once; empty for a Nydus or overlaybd image.
        nydus: what became of the layers of each image, each followed by its bootstrap.
        overlaybd: what became of the layers of each image, each with what is prefetched of it.
    """

    image: Image
    layers: tuple[ConvertedLayer, ...]
    nydus: tuple[NydusLayer, ...] = ()
    overlaybd: tuple[OverlaybdLayer, ...] = ()


def convert(
    store: ImageStore,
    source: Image,
    name: str,
    options: ConvertOptions | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    sync: Callable[[], None] | None = None,
    collect: Callable[[], object] | None = None,
) -> Converted:
    """Convert an image of the store, and record what it became.

    Args:
        store: has the content.
        source: the image.
        name: reference of the new image; an older record of that name is replaced.
        options: how.
        progress: told what happens.
        cancel: stops it from another thread.
        sync: makes everything durable; called before the image is recorded.
        collect: frees what nothing names; called when there may be something.

    Raises:
        NotFound: content is missing, or the image (or the chunk dictionary) is not for a platform.
        InvalidArgument: an option is out of range, or the name has a digest; or the image cannot be
            a Nydus or overlaybd image, or the chunk dictionary none for it.
        FormatError, DigestMismatch: a layer is damaged, or not what its configuration says.
        ResourceExhausted: there is no room.
        Cancelled: told to stop.
    """
    options = options or ConvertOptions()
    reference = check(name, options)
    if options.oci_ref:
        check_repository(_IN_LAYERS, parse(source.name), reference)
    wanted = Options(labels=options.labels)
    with operation(store, str(reference), options=wanted, cancel=cancel) as running:
        chosen = choose(store, source.target, options)
        if kind := _kind(options):
            for image in chosen:  # before anybody is told to fetch its layers
                require_files(image, kind)
        _hold(store, running, source.target, chosen)
        source_layers = SourceLayers(
            store.content,
            limits=options.limits,
            progress=progress or Silent(),
            cancel=running.cancel,
        )
        converter = _converter(store, running, source_layers, options)
        target = _convert(source.target, chosen, options, running, converter)
        if sync is not None:
            sync()
        recorded, garbage = running.record({str(reference): target})
    if garbage and collect is not None:
        collect()
    match converter:
        case NydusConverter():
            return Converted(recorded[0], (), nydus=tuple(converter.converted))
        case OverlaybdConverter():
            return Converted(recorded[0], (), overlaybd=tuple(converter.converted))
    return Converted(recorded[0], converter.converted)


def check(name: str, options: ConvertOptions) -> Reference:
    """Check what can be checked before anything is done, and return the new image's reference.

    Raises:
        InvalidArgument: an option is out of range, or the name has a digest.
    """
    _check_format(options)
    reference = parse(name)
    if options.chunk_dict:
        check_repository("use as chunk dictionary", parse(options.chunk_dict), reference)
    if reference.digest is not None:
        hint = "its digest is known when it is made: give a tag"
        raise InvalidArgument("convert an image to", name, hint=hint)
    return reference


def _check_format(options: ConvertOptions) -> None:
    if options.nydus is not None and options.overlaybd is not None:
        what = "convert to a Nydus and an overlaybd image at once"
        raise InvalidArgument(what, hint="choose one of them")
    if options.nydus is not None:
        options.nydus.check()
        if options.oci_ref:
            _check_reference(options, options.nydus)
    elif options.overlaybd is not None:
        if options.oci_ref or options.chunk_dict:
            what = "convert to an overlaybd image with a chunk dictionary or references"
            raise InvalidArgument(what, hint="only Nydus images have them")
        options.overlaybd.check()
    else:
        options.blob.codec()


def _check_reference(options: ConvertOptions, rafs: RafsOptions) -> None:
    if (rafs.version, rafs.compressor, options.chunk_dict) != (6, Compressor.GZIP, ""):
        hint = "only version 6 can, the compressor is gzip, and there is no chunk dictionary"
        raise InvalidArgument(_IN_LAYERS, hint=hint)


def choose(store: ImageStore, target: Descriptor, options: ConvertOptions) -> list[PlatformImage]:
    """Return the images that are converted, in the order of their index.

    Raises:
        NotFound: there is none for a platform, or a document is not in the store.
    """
    if target.media_type not in INDEX_TYPES:
        chosen = [read_image(target, store.read)]
    else:
        listed = list(images(target, store.read))
        if not options.all_platforms:
            platforms = options.platforms or (default_platform(),)
            wanted = {select(target, p, store.read).descriptor.digest for p in platforms}
            listed = [descriptor for descriptor in listed if descriptor.digest in wanted]
        chosen = [read_image(descriptor, store.read) for descriptor in listed]
    return chosen


def _kind(options: ConvertOptions) -> str:
    if options.overlaybd is not None:
        return "overlaybd"
    return "Nydus" if options.nydus is not None else ""


def _hold(
    store: ImageStore, running: Operation, target: Descriptor, chosen: Sequence[PlatformImage]
) -> None:
    """Keep what is read from being collected, and look that all of it is here before the work."""
    running.fetcher.hold([target])
    for image in chosen:
        layers = image.manifest.layers
        running.fetcher.hold([image.descriptor, image.manifest.config, *layers])
        for layer in layers:
            if not is_foreign(layer.media_type) and not store.content.has(layer.digest):
                raise missing_layer(layer)


def _converter(
    store: ImageStore, running: Operation, source: SourceLayers, options: ConvertOptions
) -> LayerConverter | NydusConverter | OverlaybdConverter:
    if options.overlaybd is not None:
        return OverlaybdConverter(
            store.content, running.fetcher, source, options.overlaybd, cancel=running.cancel
        )
    if options.nydus is not None:
        return NydusConverter(
            store.content,
            running.fetcher,
            source,
            options.nydus,
            oci_ref=options.oci_ref,
            dictionary=_dictionary(store, running, options),
            threads=options.threads,
            cancel=running.cancel,
        )
    return LayerConverter(
        store.content,
        running.fetcher,
        source,
        options.blob,
        threads=options.threads,
        cancel=running.cancel,
    )


def _dictionary(
    store: ImageStore, running: Operation, options: ConvertOptions
) -> Callable[[Platform], ChunkDictionary] | None:
    """Return what reads the chunk dictionary for a platform, kept from being collected."""
    rafs = options.nydus
    if not options.chunk_dict or rafs is None:
        return None
    image = store.catalogue.get(str(parse(options.chunk_dict)))

    def read(platform: Platform) -> ChunkDictionary:
        manifest = store.select(image, platform).manifest
        running.fetcher.hold(manifest.layers)
        return read_dictionary(store.content, manifest, image.name, rafs)

    return read


def _convert(
    target: Descriptor,
    chosen: Sequence[PlatformImage],
    options: ConvertOptions,
    running: Operation,
    converter: LayerConverter | ImageConverter,
) -> Descriptor:
    made = [_convert_image(image, options, running, converter) for image in chosen]
    if target.media_type not in INDEX_TYPES:
        return made[0]
    index = read_document(target, running.fetcher.read)
    assert isinstance(index, Index), "a document is of the type that its descriptor says"
    entries = [
        msgspec.structs.replace(
            descriptor,
            annotations=image.descriptor.annotations,
            platform=image.descriptor.platform or image.config.platform,
        )
        for descriptor, image in zip(made, chosen, strict=True)
    ]
    document = msgspec.structs.replace(
        index, schema_version=2, media_type=OCI_INDEX, manifests=tuple(entries)
    )
    return _keep(running, encode(document), OCI_INDEX)


def _convert_image(
    image: PlatformImage,
    options: ConvertOptions,
    running: Operation,
    converter: LayerConverter | ImageConverter,
) -> Descriptor:
    # Fields that are not known here stay.
    config: dict[str, Any] = json.loads(running.fetcher.read(image.manifest.config))
    if isinstance(converter, LayerConverter):
        layers, diff_ids = _convert_layers(image, options, converter)
    else:
        made = converter.convert(image, options.prioritized_of)
        layers, diff_ids = made.layers, made.diff_ids
        if made.history is not None:
            config["history"] = made.history
    config.setdefault("rootfs", {"type": "layers"})["diff_ids"] = diff_ids
    data = json.dumps(config, separators=(",", ":"), ensure_ascii=False).encode()
    manifest = msgspec.structs.replace(
        image.manifest,
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=_keep(running, data, OCI_CONFIG),
        layers=layers,
    )
    return _keep(running, encode(manifest), OCI_MANIFEST)


def _convert_layers(
    image: PlatformImage, options: ConvertOptions, converter: LayerConverter
) -> tuple[tuple[Descriptor, ...], tuple[Digest, ...]]:
    made = [
        converter.convert(layer, diff_id, options.prioritized_of(layer.digest))
        for layer, diff_id in zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True)
    ]
    return tuple(layer.target for layer in made), tuple(layer.diff_id for layer in made)


def _keep(running: Operation, data: bytes, media_type: str) -> Descriptor:
    descriptor = Descriptor(media_type, sha256(data), len(data))
    running.fetcher.keep(descriptor, data)
    return descriptor
