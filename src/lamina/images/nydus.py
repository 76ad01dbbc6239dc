"""Nydus images in the content store: which layer is what, and their bootstraps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.compression import decompress
from lamina.formats.rafs.annotations import BLOB, BOOTSTRAP, BOOTSTRAP_PATH, OLD_BOOTSTRAP_PATH
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader, Type
from lamina.formats.tar.layer import clean
from lamina.images.blob_source import FileSource
from lamina.images.content import ContentStore
from lamina.images.manifest import Descriptor, Manifest
from lamina.layer.blob import is_sniffed

MAX_BOOTSTRAP = 1 << 34
_PATHS = {BOOTSTRAP_PATH.encode(), OLD_BOOTSTRAP_PATH.encode()}


def bootstrap_layer(manifest: Manifest) -> Descriptor | None:
    """Return the layer that has the bootstrap; None for an image that is no Nydus image."""
    return next((layer for layer in manifest.layers if BOOTSTRAP in layer.annotations), None)


def blob_layers(manifest: Manifest) -> dict[str, Descriptor]:
    """Return the layers that are blobs, by the ids that bootstraps have for them."""
    return {
        layer.digest.partition(":")[2]: layer
        for layer in manifest.layers
        if BLOB in layer.annotations
    }


def image_bootstrap(content: ContentStore, manifest: Manifest) -> Bootstrap:
    """Read the bootstrap of a Nydus image.

    Raises:
        InvalidArgument: it is none.
        NotFound: the layer is not in the store.
        FormatError, DigestMismatch: the bootstrap is damaged, or has what is not supported.
    """
    layer = bootstrap_layer(manifest)
    if layer is None:
        raise InvalidArgument("read the bootstrap of what is no Nydus image")
    with open_bootstrap(content, layer) as source:
        return read_bootstrap(source)


@contextmanager
def open_bootstrap(content: ContentStore, layer: Descriptor) -> Iterator[FileSource]:
    """Open the bootstrap in its layer for the body.

    Raises:
        NotFound: the layer is not in the store.
        FormatError: it is damaged, or has no bootstrap.
    """
    with (
        content.open(layer.digest) as file,
        tempfile.TemporaryFile(dir=content.root) as out,
    ):
        _extract(file, layer, out)
        yield FileSource(out)


def _extract(file: BinaryIO, layer: Descriptor, out: BinaryIO) -> None:
    stream = ChunkStream(decompress(file.read, sniff=is_sniffed(layer.media_type)))
    tar = TarReader(stream)
    while (entry := tar.next()) is not None:
        if clean(entry.name) not in _PATHS or entry.type != Type.REGULAR:
            continue
        if entry.size > MAX_BOOTSTRAP or entry.sparse is not None:
            expected = f"a bootstrap of at most {MAX_BOOTSTRAP} bytes"
            raise FormatError("tar", stream.offset, expected=expected, got=str(entry.real_size))
        while part := tar.take():
            out.write(part)
        out.flush()
        return
    expected = f"{BOOTSTRAP_PATH} in layer {layer.digest}"
    raise FormatError("tar", stream.offset, expected=expected, got="none")
