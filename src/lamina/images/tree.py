"""The tree of content below an image: index, manifests, configuration and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lamina.core.digest import Digest, chain_ids
from lamina.core.labels import GC_REF_CONTENT
from lamina.errors import FormatError, InvalidArgument, NotFound
from lamina.images.manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
)
from lamina.images.platform import candidates, format_platform, is_attestation, normalize, rank

MAX_DEPTH = 4
"""Indexes inside indexes; containerd's own images have one."""

Reader = Callable[[Descriptor], bytes]
"""Returns a manifest, an index or a configuration, verified; may fetch it."""


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """One image for one platform, all of its documents read.

    Attributes:
        descriptor: of the manifest.
        chain: chain id of each layer, base first.
    """

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    chain: tuple[Digest, ...]

    @property
    def chain_id(self) -> Digest | None:
        """Name of the top layer's snapshot; None for an image without layers."""
        return self.chain[-1] if self.chain else None


def read_document(descriptor: Descriptor, read: Reader) -> Manifest | Index:
    """Read and decode a manifest or an index."""
    return parse_manifest(read(descriptor), descriptor.media_type)


def children(descriptor: Descriptor, read: Reader) -> list[Descriptor]:
    """Return what a manifest or an index points at; nothing for any other content."""
    if descriptor.media_type not in INDEX_TYPES | MANIFEST_TYPES:
        return []
    document = read_document(descriptor, read)
    if isinstance(document, Index):
        return list(document.manifests)
    return [document.config, *document.layers]


def child_labels(document: Manifest | Index) -> dict[str, str]:
    """Return the labels by which a collection finds what the document points at."""
    if isinstance(document, Index):
        return {f"{GC_REF_CONTENT}.m.{i}": m.digest for i, m in enumerate(document.manifests)}
    layers = {f"{GC_REF_CONTENT}.l.{i}": d.digest for i, d in enumerate(document.layers)}
    return {f"{GC_REF_CONTENT}.config": document.config.digest, **layers}


def select(target: Descriptor, platform: Platform, read: Reader) -> PlatformImage:
    """Find the image for a platform below `target`.

    A manifest that is itself the target is taken whatever it is for, as in containerd: who names
    one image gets that image.

    Raises:
        NotFound: there is none for the platform.
        FormatError: a document is damaged, or indexes are nested too deep.
    """
    if target.media_type in MANIFEST_TYPES:
        return read_image(target, read)
    found = _select(target, platform, read, MAX_DEPTH)
    if found is None:
        raise NotFound("find image for platform", format_platform(platform))
    return found


def read_image(descriptor: Descriptor, read: Reader) -> PlatformImage:
    """Read one image's manifest and configuration.

    Raises:
        InvalidArgument: it is no image but some other artifact.
        FormatError: the configuration does not have one diff id for each layer.
    """
    manifest = read_document(descriptor, read)
    if isinstance(manifest, Index) or manifest.config.media_type not in CONFIG_TYPES:
        kind = descriptor.media_type if isinstance(manifest, Index) else manifest.config.media_type
        raise InvalidArgument("unpack what is no image", f"{descriptor.digest} ({kind})")
    config = parse_config(read(manifest.config))
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(
            "image config",
            0,
            expected=f"{len(manifest.layers)} diff_ids, one for each layer",
            got=str(len(diff_ids)),
        )
    return PlatformImage(descriptor, manifest, config, tuple(chain_ids(diff_ids)))


def images(target: Descriptor, read: Reader) -> Iterator[Descriptor]:
    """Yield every image manifest below `target`, without attestations; those absent too.

    Raises:
        NotFound: an index is not there.
    """
    yield from _images(target, read, MAX_DEPTH)


def descendants(target: Descriptor, read: Reader) -> Iterator[Descriptor]:
    """Yield all content below `target`, attestations included, each before what is below it.

    Raises:
        FormatError: indexes are nested too deep.
    """
    yield from _descendants(target, read, MAX_DEPTH)


def _descendants(descriptor: Descriptor, read: Reader, depth: int) -> Iterator[Descriptor]:
    if descriptor.media_type in INDEX_TYPES:
        for entry in _entries(descriptor, read, depth):
            yield entry
            yield from _descendants(entry, read, depth - 1)
    elif descriptor.media_type in MANIFEST_TYPES:
        yield from children(descriptor, read)


def _images(descriptor: Descriptor, read: Reader, depth: int) -> Iterator[Descriptor]:
    if descriptor.media_type not in INDEX_TYPES:
        yield descriptor
        return
    for child in _entries(descriptor, read, depth):
        if not is_attestation(child):
            yield from _images(child, read, depth - 1)


def _select(
    index: Descriptor, platform: Platform, read: Reader, depth: int
) -> PlatformImage | None:
    for entry in candidates(_entries(index, read, depth), platform):
        if entry.media_type in INDEX_TYPES:
            found = _select(entry, platform, read, depth - 1)
            if found is not None:
                return found
        elif entry.media_type in MANIFEST_TYPES:
            image = read_image(entry, read)
            if entry.platform is not None or _fits(image.config, platform):
                return image
    return None


def _entries(index: Descriptor, read: Reader, depth: int) -> tuple[Descriptor, ...]:
    if depth == 0:
        raise FormatError(
            "image index", 0, expected=f"at most {MAX_DEPTH} indexes in each other", got="more"
        )
    document = read_document(index, read)
    return document.manifests if isinstance(document, Index) else ()


def _fits(config: ImageConfig, platform: Platform) -> bool:
    return rank(platform, normalize(config.platform)) is not None
