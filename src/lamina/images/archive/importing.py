"""Importing images from an OCI layout or a docker archive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lamina.core.digest import sha256
from lamina.errors import FormatError, NotFound
from lamina.images.archive.contents import Contents, take_in
from lamina.images.archive.docker import docker_images
from lamina.images.archive.members import members
from lamina.images.catalogue import Image
from lamina.images.extraction import Destination
from lamina.images.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    NAME_ANNOTATION,
    OCI_INDEX,
    REF_NAME_ANNOTATION,
    Descriptor,
    Index,
    encode,
    parse_manifest,
)
from lamina.images.operation import Operation, Options, operation
from lamina.images.progress import Progress
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import MAX_DEPTH, children


@dataclass(frozen=True, slots=True)
class Names:
    """How imported images are named.

    Attributes:
        base: only images of this name, and the name for those that the archive gives just a tag;
            "" takes all, and names the tags after today: `import-2026-01-31`.
        digests: name images by digest too: `BASE@sha256:...`.
        skip_digest_for_named: with `digests`, only those that get no other name.
        index: name for the archive's whole index.
    """

    base: str = ""
    digests: bool = False
    skip_digest_for_named: bool = False
    index: str = ""

    def of(self, entry: Descriptor) -> list[str]:
        """Return the names of an entry of the archive's index."""
        base = self.base or time.strftime("import-%Y-%m-%d")
        said = entry.annotations.get(NAME_ANNOTATION) or ""
        tag = entry.annotations.get(REF_NAME_ANNOTATION) or ""
        full = said or (tag if set(tag) & set("/:@") else f"{base}:{tag}" if tag else "")
        if self.base and full and not _is_of(full, self.base):
            full = ""
        names = [full] if full else []
        if self.digests and not (names and self.skip_digest_for_named):
            names.append(f"{base}@{entry.digest}")
        return names


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to import.

    Attributes:
        names: how the images are named.
        compress: compress the plain layers of a docker archive with gzip.
        unpacking: platforms, labels, workers and limits.
    """

    names: Names = field(default_factory=Names)
    compress: bool = False
    unpacking: Options = field(default_factory=Options)


def import_images(
    source: Path | BinaryIO,
    *,
    store: ImageStore,
    destination: Destination | None,
    options: ImportOptions | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    sync: Callable[[], None] | None = None,
    collect: Callable[[], object] | None = None,
) -> list[Image]:
    """Import every image that gets a name, and unpack it.

    Blobs are streamed into the content store and checked on the way; no path that an archive
    names is ever opened.

    Args:
        source: a layout directory, a tar file, or a stream of one; compressed or not.
        store: where the content goes.
        destination: where to unpack; None to keep the content only.
        options: how.
        progress: told of the unpacking.
        cancel: stops it from another thread.
        sync: makes everything durable; called before the images are recorded.
        collect: frees what nothing names; called after, since an archive may have more than that.

    Raises:
        FormatError: it is neither kind of archive, or damaged.
        DigestMismatch: a blob is not what its name says.
        NotFound: no image in it gets a name, or it lacks some of an image's content.
    """
    options = options or ImportOptions()
    label = str(source) if isinstance(source, Path) else "stream"
    with operation(
        store, f"import of {label}", options=options.unpacking, progress=progress, cancel=cancel
    ) as running:
        with _naming(label):
            contents = take_in(members(source), store.content, running)
            index = _index(contents, store, running, compress=options.compress)
        targets = dict(_targets(index, options.names, running))
        if not targets:
            hint = "give --base-name, --digests or --index-name to name them"
            raise NotFound("names for the images of", label, hint=hint)
        for target in {target.digest: target for target in targets.values()}.values():
            _label(target, store, running)
            if destination is not None:
                running.bring(target, destination)
        if sync is not None:
            sync()
        images, _ = running.record(targets)
    if collect is not None:
        collect()
    return images


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Say in which file the damage is that the body comes upon."""
    try:
        yield
    except FormatError as error:
        raise FormatError(
            error.format, error.offset, expected=error.expected, got=error.got, source=source
        ) from error


def _index(contents: Contents, store: ImageStore, running: Operation, *, compress: bool) -> Index:
    """Return the archive's index, or the one made for a docker archive."""
    if "oci-layout" in contents.documents and "index.json" in contents.documents:
        found = parse_manifest(contents.documents["index.json"], OCI_INDEX)
        return found if isinstance(found, Index) else Index(manifests=())
    if "manifest.json" in contents.documents:
        images = tuple(docker_images(contents, store.content, running, compress=compress))
        return Index(schema_version=2, media_type=OCI_INDEX, manifests=images)
    raise FormatError(
        "image archive", 0, expected="oci-layout and index.json, or manifest.json", got="neither"
    )


def _targets(index: Index, names: Names, running: Operation) -> Iterator[tuple[str, Descriptor]]:
    for entry in index.manifests:
        if entry.media_type not in INDEX_TYPES | MANIFEST_TYPES:
            continue
        for name in names.of(entry):
            yield (
                name,
                Descriptor(media_type=entry.media_type, digest=entry.digest, size=entry.size),
            )
    if names.index:
        data = encode(index)
        target = Descriptor(media_type=OCI_INDEX, digest=sha256(data), size=len(data))
        running.fetcher.keep(target, data)
        yield names.index, target


def _label(target: Descriptor, store: ImageStore, running: Operation) -> None:
    """Read all documents below `target`, which labels them for the collector.

    An index may list what the archive does not have: other platforms.
    """
    pending = [(target, MAX_DEPTH)]
    while pending:
        descriptor, depth = pending.pop()
        if depth == 0:
            got = f"more than {MAX_DEPTH}"
            raise FormatError("image index", 0, expected="few indexes in each other", got=got)
        if descriptor is not target and not store.content.has(descriptor.digest):
            continue
        found = children(descriptor, running.fetcher.read)
        nested = INDEX_TYPES | MANIFEST_TYPES
        pending += [(child, depth - 1) for child in found if child.media_type in nested]


def _is_of(name: str, base: str) -> bool:
    return name == base or (name.startswith(base) and name[len(base)] in "/:@")
