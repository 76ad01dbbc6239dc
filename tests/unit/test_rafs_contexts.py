"""Gzip layers whose chunks are decompressed from the middle on."""

from __future__ import annotations

import ctypes
import gzip
import io
import zlib
from array import array

import pytest
from isal import igzip_lib

from lamina.core.digest import Digest
from lamina.errors import FormatError, InvalidArgument, NotImplementedHere
from lamina.formats.deflate import Point
from lamina.formats.rafs.writer.contexts import SPACING, Contexts
from lamina.formats.rafs.zran import inflate
from lamina.images.gzip_scan import GzipScan
from lamina.images.manifest import OCI_LAYER_GZIP, Descriptor
from lamina.linux.libz import ZStream
from tests.rafs import noise
from tests.unit.test_rafs_writer import BIG

DATA = noise(700_000).hex().encode() + bytes(3 << 20) + noise(600_000, b"more") + BIG * 40
STREAMS = {
    "one member": gzip.compress(DATA, 6),
    "stored": gzip.compress(DATA, 0),
    "isa-l": igzip_lib.compress(DATA, 3, igzip_lib.COMP_GZIP),
    "one for each 30000 bytes, and an empty one": gzip.compress(b"")
    + b"".join(gzip.compress(DATA[at : at + 30_000]) for at in range(0, len(DATA), 30_000)),
}


def scan(stream: bytes) -> GzipScan:
    return GzipScan(Descriptor(OCI_LAYER_GZIP, Digest("sha256:" + "0" * 64), len(stream)))


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_chunks_are_read_from_the_place_before_them(stream: bytes) -> None:
    scanning = scan(stream)
    assert b"".join(scanning.unpack(io.BytesIO(stream).read)) == DATA
    contexts = Contexts(*scanning.result())
    places = {}
    at = 0
    for size in (1, 5000, 1 << 20, 512, 70_000) * 4:
        chunk = DATA[at : at + size]
        if chunk:
            places[at, len(chunk)] = contexts.place(at, len(chunk))
        at += size + 700
    assert len(contexts.made) > 1
    outputs = [
        inflate(context, stream[context.in_offset : context.in_offset + context.in_size])
        for context in contexts.made
    ]
    for (at, size), (number, inner) in places.items():
        assert outputs[number][inner : inner + size] == DATA[at : at + size]


@pytest.mark.parametrize("stream", [STREAMS["one member"][:-9], gzip.compress(b"a") + b"more"])
def test_a_damaged_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(FormatError, match="gzip data"):
        list(scan(stream).unpack(io.BytesIO(stream).read))


def test_what_is_no_gzip_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="it has to be gzip"):
        list(scan(b"").unpack(io.BytesIO(zlib.compress(DATA)).read))


def test_blocks_that_no_context_can_have_are_refused() -> None:
    contexts = Contexts([Point(0, 10, 0, 0, b"")], array("Q", [1 << 26, 5000]))
    with pytest.raises(NotImplementedHere):
        contexts.place(1 << 25, 10)


def test_the_structure_is_that_of_zlib() -> None:
    assert ctypes.sizeof(ZStream) == 112
    assert SPACING > 1 << 15
