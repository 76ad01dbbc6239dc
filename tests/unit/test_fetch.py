"""Bringing content: what those who wait for a blob are told."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from lamina.errors import DigestMismatch
from lamina.images.download import BlobSink, Download
from lamina.images.fetch import Fetcher
from lamina.images.ingest import Writer
from lamina.images.manifest import Descriptor
from lamina.images.progress import Event, StageClock
from lamina.images.reference import Reference, parse
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.client import Registry
from lamina.images.store import ImageStore
from tests.unit.test_content import BLOB


class Liar:
    """A registry whose blobs are all zeros."""

    def download(
        self, reference: Reference, descriptor: Descriptor, sink: BlobSink, *, cancel: Cancel
    ) -> None:
        sink.write(bytes(descriptor.size))


class Nobody:
    def update(self, event: Event) -> None:
        pass


def test_wrong_bytes_are_told_of_before_they_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thread that waits for the file might look for it just after its removal."""
    downloads: list[Download] = []
    seen: list[str] = []
    abort = Writer.abort

    def aborting(writer: Writer) -> None:
        try:
            downloads[0].check()
        except DigestMismatch:
            seen.append("told")
        seen.append("removed")
        abort(writer)

    monkeypatch.setattr(Writer, "abort", aborting)
    with ImageStore(tmp_path) as store:
        lease = store.leases.create().id
        source = (cast(Registry, Liar()), parse("localhost/image:tag"))
        with Fetcher(
            store, lease, source=source, downloads=0, progress=Nobody(), clock=StageClock(),
            cancel=Cancel(),
        ) as fetcher:  # fmt: skip
            downloads += fetcher.layers([BLOB])
            fetcher._bring(downloads[0])
            with pytest.raises(DigestMismatch):
                downloads[0].wait()
    assert seen == ["told", "removed"]
