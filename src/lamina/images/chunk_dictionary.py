"""Chunks that another Nydus image has, which a new one need not have again."""

from __future__ import annotations

from typing import NamedTuple

from lamina.errors import InvalidArgument
from lamina.formats.rafs.annotations import BLOB, BLOB_MEDIA_TYPE
from lamina.formats.rafs.flags import BlobFeatures
from lamina.formats.rafs.model import DIGEST_LENGTH, UNKNOWN, Bootstrap, Chunk
from lamina.formats.rafs.units import inodes
from lamina.formats.rafs.writer.chunks import ChunkPool
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.images.content import ContentStore
from lamina.images.conversion_source import missing_layer
from lamina.images.manifest import Descriptor, Manifest
from lamina.images.nydus import blob_layers, bootstrap_layer, image_bootstrap
from lamina.images.reference import Reference

_WHAT = "use as chunk dictionary"
_OTHER = (
    BlobFeatures.BATCH
    | BlobFeatures.ZRAN
    | BlobFeatures.SEPARATE
    | BlobFeatures.TARFS
    | BlobFeatures.EXTERNAL
)
"""Blobs whose chunks cannot be read alone, or that are no layers of the image."""


class ChunkDictionary(NamedTuple):
    """What a new image may refer to.

    Attributes:
        pool: blobs and chunks.
        layers: the blobs as layers of a manifest, by their ids.
    """

    pool: ChunkPool
    layers: dict[str, Descriptor]


def check_repository(what: str, image: Reference, target: Reference) -> None:
    """Refuse an image of another repository: who pulls the new one looks in its own for all blobs.

    Args:
        what: is done with the image, for errors.
        image: whose blobs are referred to.
        target: name of the new image.

    Raises:
        InvalidArgument: it is one.
    """
    if (image.host, image.repository) != (target.host, target.repository):
        hint = f"its blobs have to be where those of {target} are to be: tag it so, and push it"
        raise InvalidArgument(what, image, hint=hint)


def read_dictionary(
    content: ContentStore, manifest: Manifest, name: str, options: RafsOptions
) -> ChunkDictionary:
    """Return the chunks of an image.

    Args:
        content: has its bootstrap and its blobs.
        manifest: of the image.
        name: of the image, for errors.
        options: of the new image.

    Raises:
        InvalidArgument: it is no Nydus image, or was made with other options.
        NotFound: its bootstrap or a blob is not in the store.
        FormatError, DigestMismatch: the bootstrap is damaged.
    """
    if bootstrap_layer(manifest) is None:
        raise InvalidArgument(_WHAT, name, hint="it is no Nydus image: name one")
    bootstrap = image_bootstrap(content, manifest)
    _check(bootstrap, name, options)
    known = blob_layers(manifest)
    found = ChunkDictionary(ChunkPool(), {})
    numbers: dict[int, int] = {}
    for index, blob in enumerate(bootstrap.blobs):
        layer = known.get(blob.id)
        if layer is None or blob.features & _OTHER:
            continue
        if not content.has(layer.digest):
            raise missing_layer(layer)
        if blob.compressor is not options.compressor:
            raise _differs(name, "compressor", blob.compressor.name, options.compressor.name)
        numbers[index] = len(found.pool.blobs)
        found.pool.blobs.append(blob._replace(readahead=(0, 0)))
        found.layers[blob.id] = Descriptor(
            BLOB_MEDIA_TYPE, layer.digest, layer.size, annotations={BLOB: "true"}
        )
    if bootstrap.blobs and not numbers:
        hint = "no chunk of it can be read alone: name one made without --oci-ref and batches"
        raise InvalidArgument(_WHAT, name, hint=hint)
    for inode in inodes(bootstrap.root):
        for _offset, chunk in inode.chunks:
            if chunk.blob in numbers and _is_plain(chunk):
                chunk = chunk._replace(blob=numbers[chunk.blob])
                found.pool.chunks.setdefault(chunk.digest, chunk)
    return found


def _is_plain(chunk: Chunk) -> bool:
    return len(chunk.digest) == DIGEST_LENGTH and chunk.compressed_offset != UNKNOWN


def _check(bootstrap: Bootstrap, name: str, options: RafsOptions) -> None:
    if bootstrap.version != options.version:
        raise _differs(name, "version", bootstrap.version, options.version)
    if bootstrap.chunk_size != options.chunk_size:
        raise _differs(name, "chunk size", bootstrap.chunk_size, options.chunk_size)
    if bootstrap.digester is not options.digester:
        raise _differs(name, "digest", bootstrap.digester.name, options.digester.name)


def _differs(name: str, what: str, has: object, wanted: object) -> InvalidArgument:
    return InvalidArgument(_WHAT, name, hint=f"its {what} is {has}, not {wanted}")
