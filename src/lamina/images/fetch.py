"""Brings the content of an image into the store, from a registry where it is not there yet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from lamina.core.labels import DISTRIBUTION_SOURCE
from lamina.errors import AlreadyExists, DataLoss, DigestMismatch, FormatError, NotFound
from lamina.images.download import BlobSink, Download, event
from lamina.images.manifest import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    content_ref,
    parse_manifest,
)
from lamina.images.origin import ImageOrigin
from lamina.images.progress import Progress, Stage, StageClock
from lamina.images.reference import Reference
from lamina.images.registry.cancel import Cancel
from lamina.images.store import ImageStore
from lamina.images.tree import child_labels
from lamina.meta.leases import Resource

if TYPE_CHECKING:
    from lamina.images.ingest import Writer
    from lamina.images.registry.client import Registry

log = logging.getLogger(__name__)

DEFAULT_DOWNLOADS = 3
STOP_SECONDS = 2.0
"""How long a cancelled operation waits for downloads to end. One that waits for a silent host to
answer takes longer; it is left behind, and ends by its own timeout or with the process."""


class Fetcher:
    """Gets documents and layers for one operation.

    Args:
        store: where they are, or go to.
        lease: id of the lease that is to hold them.
        source: registry to get what is missing from, and what to ask it for; None to work with
            local content only.
        downloads: layers to download at the same time.
    """

    def __init__(
        self,
        store: ImageStore,
        lease: str,
        *,
        source: tuple[Registry, Reference] | None,
        downloads: int,
        progress: Progress,
        clock: StageClock,
        cancel: Cancel,
    ) -> None:
        self._store = store
        self._content = store.content
        self._lease = lease
        self._remote = source
        self._progress = progress
        self._clock = clock
        self._cancel = cancel
        self._queue: SimpleQueue[Download | None] = SimpleQueue()
        self._limit = downloads
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Wait for the downloads that were started; an exception cancels them."""
        if kind is not None:
            self._cancel.set()
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0) if kind is not None else None)

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a manifest, an index or a configuration, fetched if need be; a `tree.Reader`.

        Raises:
            NotFound: it is not local and there is no registry to ask, or it has none.
            FormatError: the descriptor asks for more than such a document may have.
        """
        limit = MAX_CONFIG_BYTES if descriptor.media_type in CONFIG_TYPES else MAX_MANIFEST_BYTES
        if descriptor.size > limit:
            got = f"{descriptor.size} bytes of {descriptor.media_type}"
            raise FormatError("descriptor", 0, expected=f"at most {limit} bytes", got=got)
        self.hold([descriptor])
        data = self._local(descriptor)
        if data is None:
            self._fetch_document(descriptor)
            data = self._content.read(descriptor.digest)
        self._label(descriptor, data)
        return data

    @property
    def origin(self) -> ImageOrigin | None:
        """Where the image comes from; None without a registry."""
        if self._remote is None:
            return None
        registry, reference = self._remote
        return ImageOrigin(str(reference), registry.plain_http)

    def keep(self, descriptor: Descriptor, data: bytes) -> None:
        """Store a document that came with the answer to another question."""
        self.hold([descriptor])
        self._content.put(data, descriptor)
        self._label(descriptor, data)

    def hold(self, descriptors: Iterable[Descriptor]) -> None:
        """Put content under the lease; to be done before looking whether it is there."""
        self._store.leases.add(self._lease, [Resource.content(d.digest) for d in descriptors])

    def layers(self, descriptors: Iterable[Descriptor]) -> list[Download]:
        """Start to get these blobs, a few at a time, in this order; `hold` them before."""
        downloads = [Download(descriptor) for descriptor in descriptors]
        for download in downloads:
            self._progress.update(event(download.descriptor, Stage.WAITING))
            self._queue.put(download)
            if len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name="lamina-download", daemon=True)
                thread.start()
                self._threads.append(thread)
        return downloads

    def require_space(self, descriptors: Iterable[Descriptor]) -> None:
        """Check that the missing ones among these blobs fit on the disk.

        Raises:
            ResourceExhausted: they do not.
        """
        wanted = {d.digest: d for d in descriptors}
        begun = {ingest.ref: ingest.offset for ingest in self._content.ingests()}
        self._content.require_space(
            sum(
                max(d.size - begun.get(content_ref(d), 0), 0)
                for d in wanted.values()
                if not self._content.has(d.digest)
            )
        )

    def _local(self, descriptor: Descriptor) -> bytes | None:
        try:
            data = self._content.read(descriptor.digest)
        except NotFound:
            return None
        except DataLoss:
            if self._remote is None:
                raise
            log.warning("fetching damaged content again", extra={"digest": descriptor.digest})
            self._content.delete(descriptor.digest)
            return None
        if len(data) != descriptor.size:
            raise _wrong_size(descriptor, len(data))
        return data

    def _fetch_document(self, descriptor: Descriptor) -> None:
        if self._remote is None:
            raise _missing(descriptor)
        registry, reference = self._remote
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            data = registry.manifest(reference, descriptor, cancel=self._cancel)
            self._content.put(data, descriptor)
            return
        download = Download(descriptor)
        self._bring(download)
        download.wait()

    def _work(self) -> None:
        while (download := self._queue.get()) is not None:
            self._bring(download)

    def _bring(self, download: Download) -> None:
        """Download one blob unless it is there; every outcome ends up in `download`."""
        try:
            self._cancel.check("download", download.descriptor.digest)
            if self._remote is None:
                self._use_local(download)
            else:
                self._bring_missing(download, *self._remote)
        except BaseException as error:
            download.fail(error)

    def _use_local(self, download: Download) -> None:
        descriptor = download.descriptor
        try:
            size = self._content.info(descriptor.digest).size
        except NotFound as error:
            raise _missing(descriptor) from error
        if size != descriptor.size:
            raise _wrong_size(descriptor, size)
        download.finish(lambda: self._content.path(descriptor.digest))
        self._progress.update(event(descriptor, Stage.EXISTS, size))

    def _bring_missing(self, download: Download, registry: Registry, reference: Reference) -> None:
        descriptor = download.descriptor
        ref = content_ref(descriptor)
        try:
            writer = self._content.open_writer(ref, expected=descriptor, cancel=self._cancel)
        except AlreadyExists:
            self._use_local(download)
            return
        with writer:
            download.begin(writer.path, writer.offset)
            sink = BlobSink(writer, download, self._progress, self._clock)
            with self._clock.running("download"):
                registry.download(reference, descriptor, sink, cancel=self._cancel)
            try:
                download.finish(lambda: self._publish(writer, descriptor))
            except DigestMismatch as error:
                download.fail(error)  # first: whoever waits for the file does not look for it then
                writer.abort()
                raise
        self._progress.update(event(descriptor, Stage.DOWNLOADED, descriptor.size))

    def _publish(self, writer: Writer, descriptor: Descriptor) -> Path:
        writer.commit(self._source_label())
        return self._content.path(descriptor.digest)

    def _label(self, descriptor: Descriptor, data: bytes) -> None:
        labels = self._source_label()
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            labels |= child_labels(parse_manifest(data, descriptor.media_type))
        have = self._content.info(descriptor.digest).labels
        if not labels.items() <= have.items():
            self._content.label(descriptor.digest, labels)

    def _source_label(self) -> dict[str, str]:
        if self._remote is None:
            return {}
        reference = self._remote[1]
        return {f"{DISTRIBUTION_SOURCE}.{reference.host}": reference.repository}


def _missing(descriptor: Descriptor) -> NotFound:
    hint = "pull the image again to get what is missing"
    return NotFound("content", f"{descriptor.digest} ({descriptor.media_type})", hint=hint)


def _wrong_size(descriptor: Descriptor, got: int) -> DigestMismatch:
    what = f"{descriptor.digest}: size in bytes"
    return DigestMismatch("read", what, expected=str(descriptor.size), got=str(got))
