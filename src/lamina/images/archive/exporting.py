"""Exporting images as an OCI layout in a tar, which `docker load` reads too.

Equal images give equal bytes: members are sorted, times are 0, JSON is written one way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from lamina.core.digest import algorithm, encoded
from lamina.errors import DataLoss, InvalidArgument
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding
from lamina.images.archive.docker import SavedImage
from lamina.images.catalogue import Image
from lamina.images.content import ContentStore
from lamina.images.manifest import (
    INDEX_TYPES,
    NAME_ANNOTATION,
    OCI_INDEX,
    REF_NAME_ANNOTATION,
    Descriptor,
    Index,
    Platform,
    encode,
    is_foreign,
)
from lamina.images.platform import default_platform
from lamina.images.reference import parse
from lamina.images.store import ImageStore
from lamina.images.tree import PlatformImage, children, descendants, select

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to export.

    Attributes:
        platforms: images of an index to include; none means the machine's own platform.
        all_platforms: include everything that an index lists.
        manifest_json: write the file that docker needs.
        non_distributable: include layers whose type says that they must not be distributed.
    """

    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    manifest_json: bool = True
    non_distributable: bool = True


def export_images(
    exported: Sequence[Image],
    out: BinaryIO,
    *,
    store: ImageStore,
    options: ExportOptions | None = None,
) -> None:
    """Write the images, with their names, as one archive.

    Raises:
        NotFound: content is missing; pull the image for all the platforms to be exported.
        DataLoss: content is damaged.
        InvalidArgument: no image is given.
    """
    options = options or ExportOptions()
    if not exported:
        raise InvalidArgument("export no image")
    blobs: dict[str, Descriptor] = {}
    saved: dict[str, tuple[PlatformImage, list[str]]] = {}
    for image in exported:
        for descriptor in _wanted(image.target, store, options):
            store.content.info(descriptor.digest)  # missing content is told before any is written
            blobs[_path(descriptor)] = descriptor
        chosen = store.select(image, (*options.platforms, default_platform())[0])
        names = saved.setdefault(chosen.descriptor.digest, (chosen, []))[1]
        names.append(parse(image.name).familiar())
    documents = {"index.json": encode(_index(exported)), "oci-layout": _LAYOUT}
    if options.manifest_json:
        documents["manifest.json"] = _manifest_json(saved.values())
    _write(out, blobs, documents, store.content)


def _wanted(target: Descriptor, store: ImageStore, options: ExportOptions) -> Iterator[Descriptor]:
    """Yield what goes into the archive, `target` first."""
    yield target
    if target.media_type in INDEX_TYPES and options.all_platforms:
        below = descendants(target, store.read)
    else:
        platforms = options.platforms or (default_platform(),)
        chosen = [select(target, platform, store.read).descriptor for platform in platforms]
        yield from chosen
        below = (child for each in chosen for child in children(each, store.read))
    yield from (d for d in below if options.non_distributable or not is_foreign(d.media_type))


def _index(exported: Sequence[Image]) -> Index:
    entries = []
    for image in sorted(exported, key=lambda image: image.name):
        annotations = {NAME_ANNOTATION: image.name}
        if tag := parse(image.name).tag:
            annotations[REF_NAME_ANNOTATION] = tag
        entries.append(msgspec.structs.replace(image.target, annotations=annotations))
    return Index(schema_version=2, media_type=OCI_INDEX, manifests=tuple(entries))


def _manifest_json(saved: Iterable[tuple[PlatformImage, list[str]]]) -> bytes:
    entries = [
        SavedImage(
            config=_path(image.manifest.config),
            repo_tags=tuple(sorted(names)),
            layers=tuple(_path(layer) for layer in image.manifest.layers),
        )
        for image, names in saved
    ]
    return msgspec.json.encode(sorted(entries, key=lambda entry: entry.repo_tags or ()))


def _write(
    out: BinaryIO,
    blobs: Mapping[str, Descriptor],
    documents: Mapping[str, bytes],
    content: ContentStore,
) -> None:
    directories = {"blobs/"} | {f"{path.rpartition('/')[0]}/" for path in blobs}
    for name in sorted({*directories, *blobs, *documents}):
        if name in directories:
            out.write(header(Entry(name.encode(), Type.DIRECTORY, 0o755)))
        elif name in documents:
            data = documents[name]
            out.write(header(Entry(name.encode(), mode=0o444, size=len(data))))
            out.write(data + bytes(padding(len(data))))
        else:
            _write_blob(out, name, blobs[name], content)
    out.write(END_OF_ARCHIVE)


def _write_blob(out: BinaryIO, name: str, blob: Descriptor, content: ContentStore) -> None:
    hashed = hashlib.new(algorithm(blob.digest))
    written = 0
    with content.open(blob.digest) as file:
        out.write(header(Entry(name.encode(), mode=0o444, size=blob.size)))
        while data := file.read(_CHUNK):
            hashed.update(data)
            written += len(data)
            out.write(data)
    if written != blob.size or hashed.hexdigest() != encoded(blob.digest):
        hint = f"remove it (lamina content rm {blob.digest}) and pull the image again"
        raise DataLoss("export damaged blob", blob.digest, hint=hint)
    out.write(bytes(padding(written)))


def _path(descriptor: Descriptor) -> str:
    return f"blobs/{algorithm(descriptor.digest)}/{encoded(descriptor.digest)}"
