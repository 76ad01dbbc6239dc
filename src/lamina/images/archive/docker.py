"""What `docker save` writes: `manifest.json` with configurations and layers by member name.

Source: Docker's "Docker Image Specification v1.2". The older `repositories` file is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from lamina.core.digest import sha256
from lamina.errors import FormatError
from lamina.formats.compression import MAGIC_LENGTH, Compression, compressor, detect
from lamina.images.archive.contents import Contents
from lamina.images.content import ContentStore
from lamina.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    NAME_ANNOTATION,
    REF_NAME_ANNOTATION,
    Descriptor,
    Manifest,
    encode,
    parse_config,
)
from lamina.images.operation import Operation
from lamina.images.reference import parse

_CHUNK = 1 << 20
_LAYER_TYPES = {
    Compression.NONE: DOCKER_LAYER,
    Compression.GZIP: DOCKER_LAYER_GZIP,
    Compression.ZSTD: DOCKER_LAYER_ZSTD,
}


class SavedImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of `manifest.json`; `config` and `layers` are names of members."""

    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


def docker_images(
    contents: Contents, content: ContentStore, running: Operation, *, compress: bool
) -> Iterator[Descriptor]:
    """Store a manifest for each image, and yield its descriptor with its names as annotations.

    An image with several tags is yielded once for each, one without tags once.

    Raises:
        FormatError: `manifest.json` is damaged, or names what the archive does not have.
    """
    try:
        saved = msgspec.json.decode(contents.documents["manifest.json"], type=list[SavedImage])
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError("manifest.json", 0, expected="its fields", got=str(error)) from error
    for image in saved:
        target = _manifest(image, contents, content, running, compress=compress)
        for tag in image.repo_tags or ("",):
            yield _named(target, tag)


def _manifest(
    image: SavedImage,
    contents: Contents,
    content: ContentStore,
    running: Operation,
    *,
    compress: bool,
) -> Descriptor:
    config = _config(image.config, contents, content)
    config_descriptor = Descriptor(
        media_type=DOCKER_CONFIG, digest=sha256(config), size=len(config)
    )
    running.fetcher.keep(config_descriptor, config)
    layers = tuple(
        _layer(_blob(name, contents), content, running, compress=compress)
        for name in image.layers or ()
    )
    manifest = Manifest(
        schema_version=2, media_type=DOCKER_MANIFEST, config=config_descriptor, layers=layers
    )
    data = encode(manifest)
    platform = parse_config(config).platform
    target = Descriptor(
        media_type=DOCKER_MANIFEST, digest=sha256(data), size=len(data), platform=platform
    )
    running.fetcher.keep(target, data)
    return target


def _config(name: str, contents: Contents, content: ContentStore) -> bytes:
    resolved = contents.resolve(name)
    if resolved in contents.documents:
        return contents.documents[resolved]
    return content.read(_blob(name, contents).digest)


def _blob(name: str, contents: Contents) -> Descriptor:
    found = contents.blobs.get(contents.resolve(name))
    if found is None:
        raise FormatError("image archive", 0, expected=f"a file {name[:160]}", got="none")
    return found


def _layer(
    blob: Descriptor, content: ContentStore, running: Operation, *, compress: bool
) -> Descriptor:
    """Return the layer with its media type; a plain one is compressed on request."""
    with content.open(blob.digest) as file:
        compression = detect(file.read(MAGIC_LENGTH).ljust(MAGIC_LENGTH, b"\0"))
    if compression is Compression.NONE and compress:
        return _compressed(blob, content, running)
    return Descriptor(media_type=_LAYER_TYPES[compression], digest=blob.digest, size=blob.size)


def _compressed(blob: Descriptor, content: ContentStore, running: Operation) -> Descriptor:
    ref = f"compress-{running.lease}-{blob.digest}"
    with content.open(blob.digest) as file, content.open_writer(ref) as writer:
        try:
            stream = compressor(Compression.GZIP)
            while data := file.read(_CHUNK):
                running.cancel.check("compress layer", blob.digest)
                writer.write(stream.compress(data))
            writer.write(stream.flush())
            result = Descriptor(
                media_type=DOCKER_LAYER_GZIP, digest=writer.digest, size=writer.offset
            )
            running.fetcher.hold([result])
            writer.commit()
        except BaseException:
            writer.abort()
            raise
    return result


def _named(target: Descriptor, tag: str) -> Descriptor:
    if not tag:
        return target
    reference = parse(tag)
    annotations = {NAME_ANNOTATION: str(reference), REF_NAME_ANNOTATION: reference.tag}
    return msgspec.structs.replace(target, annotations=annotations)
