"""Images that Lamina has made lazy, as a stock containerd and the format's own tool read them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import lamina
from lamina.formats.estargz.writer import BlobFormat, BlobOptions
from lamina.images.conversion import ALL_LAYERS, Converted, ConvertOptions
from tests.archives import Archive
from tests.containerd.test_same_rootfs import containerds, without_times_since
from tests.fixtures_containerd import Containerd
from tests.fixtures_peer import ctr_remote
from tests.fixtures_registry import LocalRegistry
from tests.hard_image import hard_image, layer
from tests.images import Layer, image

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.ctr_remote,
    pytest.mark.registry,
]

FIRST = b"as-big"
"""A hard link, behind whose target the landmark of its layer lies."""
LANDMARKS = (".prefetch.landmark", ".no.prefetch.landmark")
READING = {
    BlobFormat.ESTARGZ: ((), (*LANDMARKS, "stargz.index.json")),
    BlobFormat.ZSTD_CHUNKED: (("--zstdchunked",), LANDMARKS),
}
"""How ctr-remote is told what it reads, and what else is unpacked of a layer."""


def convert(directory: Path, source: str, target: str, format: BlobFormat) -> Converted:
    options = ConvertOptions(
        blob=BlobOptions(format=format, chunk_size=64 << 10), prioritized={ALL_LAYERS: [FIRST]}
    )
    with lamina.open(directory) as store:
        store.pull(source, unpack=False, plain_http=True)
        converted = store.convert(source, target, options=options)
        store.push(target, plain_http=True)
    return converted


def with_chunks() -> Layer:
    return layer(Archive().file("big", b"big" * 50_000).link("as-big", "big").dir("behind"))


def test_peers_read_what_is_written(
    registry: LocalRegistry, containerd: Containerd, tmp_path: Path
) -> None:
    began = time.time_ns()
    files = image(*hard_image(sparse=False), with_chunks())
    registry.push(files.manifest, files.blobs, "hard", "1")
    source = f"{registry.host}/hard:1"
    expected = containerds(containerd, source, tmp_path / "plain")
    for format, (option, own) in READING.items():
        target = f"{registry.host}/{format.name.lower()}:1"
        converted = convert(tmp_path / "root", source, target, format)
        found = containerds(containerd, target, tmp_path / format)
        assert all(found.pop(name).content for name in own)
        assert without_times_since(began, found, expected) == without_times_since(
            began, expected, found
        )

        tool = ("images", "get-toc-digest", *option)
        for each in converted.layers:
            assert each.blob is not None, each.kept
            digest = each.target.digest
            assert ctr_remote(containerd, *tool, digest).strip() == each.blob.toc_digest
        toc = json.loads(ctr_remote(containerd, *tool, "--dump-toc", digest))
        names = [entry["name"] for entry in toc["entries"]]
        assert names == ["big", "big", "big", "as-big", ".prefetch.landmark", "behind/"]
