"""Pushing an image: its blobs, then its manifests, and last what its tag points at."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lamina.core.digest import sha256
from lamina.core.labels import DISTRIBUTION_SOURCE
from lamina.errors import InvalidArgument, NotFound
from lamina.images.catalogue import Image
from lamina.images.content import ContentStore
from lamina.images.download import event
from lamina.images.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Index,
    Platform,
    encode,
    is_foreign,
)
from lamina.images.platform import format_platform
from lamina.images.progress import Progress, Silent, Stage
from lamina.images.reference import Reference
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.client import Registry
from lamina.images.store import ImageStore
from lamina.images.tree import descendants, select
from lamina.meta.leases import Resource

DEFAULT_UPLOADS = 3


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What to push.

    Attributes:
        platforms: the images for these, and no others; none means all that the image has.
        non_distributable: foreign layers too, which registries mostly leave where they are.
        uploads: blobs to upload at the same time.
    """

    platforms: tuple[Platform, ...] = ()
    non_distributable: bool = False
    uploads: int = DEFAULT_UPLOADS


class Pushed(NamedTuple):
    """What `push` returns.

    Attributes:
        target: what the reference points at now.
        sent: blobs that had to be sent, and their bytes together.
        size: bytes of all blobs.
    """

    target: Descriptor
    sent: int
    sent_bytes: int
    size: int


def push(
    image: Image,
    reference: Reference,
    *,
    store: ImageStore,
    registry: Registry,
    options: PushOptions | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Pushed:
    """Push an image; the reference points at it once everything else is there.

    Args:
        image: from the catalogue.
        reference: where to; with a digest, it has to be the image's.
        store: has the content.
        registry: takes it.
        options: what.
        progress: told what happens.
        cancel: stops it from another thread.

    Raises:
        NotFound: content is not here, or not for a platform.
        InvalidArgument: the reference has another digest than what is pushed.
        LaminaError: as `Registry` raises.
    """
    options = options or PushOptions()
    target, made = _target(image, store, options.platforms)
    if reference.digest not in {None, target.digest}:
        hint = f"name a tag, or {target.digest}"
        raise InvalidArgument("push another image under", reference, hint=hint)
    documents, blobs = _below(target, store, made, options)
    upload = _Upload(registry, reference, store.content, progress or Silent(), cancel or Cancel())
    with _held(store, [*documents, *blobs, *([] if made else [target])]):
        sent = upload.blobs(blobs, options.uploads)
        for document in documents:
            upload.document(document, store.content.read(document.digest), tagged=False)
        data = made or store.content.read(target.digest)
        upload.document(target, data, tagged=True)
    return Pushed(target, len(sent), sum(sent), sum(blob.size for blob in blobs))


def _target(
    image: Image, store: ImageStore, platforms: Sequence[Platform]
) -> tuple[Descriptor, bytes]:
    """Return what is to be pushed, and its bytes where it is made for that."""
    if not platforms:
        return image.target, b""
    found = {}
    for platform in platforms:
        descriptor = select(image.target, platform, store.read).descriptor
        found[descriptor.digest] = descriptor
    if len(found) == 1:
        return next(iter(found.values())), b""
    index = Index(schema_version=2, media_type=OCI_INDEX, manifests=tuple(found.values()))
    data = encode(index)
    return Descriptor(OCI_INDEX, sha256(data), len(data)), data


def _below(
    target: Descriptor, store: ImageStore, made: bytes, options: PushOptions
) -> tuple[list[Descriptor], list[Descriptor]]:
    """Return the manifests below, children first, and the blobs; look that all are here."""

    def read(descriptor: Descriptor) -> bytes:
        return made if made and descriptor.digest == target.digest else _read(store, descriptor)

    documents: dict[str, Descriptor] = {}
    blobs: dict[str, Descriptor] = {}
    for descriptor in descendants(target, read):
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            documents[descriptor.digest] = descriptor
        elif options.non_distributable or not is_foreign(descriptor.media_type):
            blobs[descriptor.digest] = descriptor
    missing = [blob for blob in blobs.values() if not store.content.has(blob.digest)]
    if missing:
        raise _missing(missing[0], len(missing))
    return list(documents.values())[::-1], list(blobs.values())


def _read(store: ImageStore, descriptor: Descriptor) -> bytes:
    try:
        return store.read(descriptor)
    except NotFound as error:
        if descriptor.platform is None:
            raise
        name = format_platform(descriptor.platform)
        hint = f"push without it: --platform ...; or have it: lamina images pull --platform {name}"
        raise NotFound(f"manifest for {name}", descriptor.digest, hint=hint) from error


def _missing(blob: Descriptor, count: int) -> NotFound:
    hint = (
        "fetch it: lamina images pull --no-unpack, with --all-platforms for all of an index;"
        " or push what is here: --platform OS/ARCH"
    )
    return NotFound(f"content to push ({count} blobs are missing), such as", blob.digest, hint=hint)


@contextmanager
def _held(store: ImageStore, content: Sequence[Descriptor]) -> Iterator[None]:
    """Keep a collection from what is being pushed, whoever removes the image meanwhile."""
    lease = store.leases.create(owned=True).id
    try:
        store.leases.add(lease, [Resource.content(one.digest) for one in content])
        yield
    finally:
        store.leases.delete(lease)


class _Upload:
    def __init__(
        self,
        registry: Registry,
        reference: Reference,
        content: ContentStore,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        self._registry = registry
        self._reference = reference
        self._content = content
        self._progress = progress
        self._cancel = cancel

    def blobs(self, blobs: Sequence[Descriptor], at_once: int) -> list[int]:
        """Upload what is not there; return the sizes of what was sent."""
        for blob in blobs:
            self._progress.update(event(blob, Stage.WAITING))
        with ThreadPoolExecutor(at_once, thread_name_prefix="push") as pool:
            pending = [pool.submit(self._blob, blob) for blob in blobs]
            try:
                done, _ = wait(pending, return_when=FIRST_EXCEPTION)
                failed = next((one for one in done if one.exception() is not None), None)
                if failed is not None:
                    failed.result()
            except BaseException:
                self._cancel.set()
                for one in pending:
                    one.cancel()
                raise
        return [size for one in pending if (size := one.result())]

    def document(self, descriptor: Descriptor, data: bytes, *, tagged: bool) -> None:
        """Upload a manifest or an index under its digest, or under the reference's tag."""
        reference = self._reference.with_digest(descriptor.digest)
        if tagged and self._reference.tag:
            reference = replace(self._reference, digest=None)
        self._registry.push_manifest(reference, descriptor, data, cancel=self._cancel)
        self._progress.update(event(descriptor, Stage.DONE, descriptor.size))

    def _blob(self, blob: Descriptor) -> int:
        info = self._content.info(blob.digest)
        path = self._content.path(blob.digest)

        def advance(offset: int) -> None:
            self._cancel.check("push blob", blob.digest)
            self._progress.update(event(blob, Stage.UPLOADING, offset))

        sent = self._registry.push_blob(
            self._reference,
            blob,
            lambda: _Counted(path, advance),
            mount_from=self._elsewhere(info.labels.get(self._label, "")),
            cancel=self._cancel,
        )
        self._progress.update(event(blob, Stage.DONE if sent else Stage.EXISTS, blob.size))
        return blob.size if sent else 0

    @property
    def _label(self) -> str:
        return f"{DISTRIBUTION_SOURCE}.{self._reference.host}"

    def _elsewhere(self, repositories: str) -> str:
        """Return another repository of the registry that the blob has come from, "" for none."""
        names = (name for name in repositories.split(",") if name != self._reference.repository)
        return next(names, "")


class _Counted(io.FileIO):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        super().__init__(path)
        self._advance = advance

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._advance(self.tell())
        return data
