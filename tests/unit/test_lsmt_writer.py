"""LSMT layers as they are written: byte for byte where that is known, and read again."""

from __future__ import annotations

import io
import tempfile
from uuid import UUID as Uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import InvalidArgument, ResourceExhausted
from lamina.formats.lsmt import writer
from lamina.formats.lsmt.blob import write_blob
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.merging import replay_writes
from lamina.formats.lsmt.reader import Layer, open_layer, read_layer
from lamina.formats.lsmt.stack import Stack, export_image
from lamina.formats.lsmt.writer import Written, image_extents, write_layer
from lamina.formats.zfile.envelope import wrapped
from lamina.formats.zfile.writer import ZFileWriter
from tests.erofs import Bytes
from tests.lsmt import NULL, PADDING, UUID, ZERO, listed, record, rows
from tests.rafs import noise

DATA = noise(64 * 512)
KIB = 1024
ABOUT = About(1 << 30)


def layer_of(extents: list[Extent], *sources: bytes, about: About = ABOUT) -> Layer:
    out = io.BytesIO()
    write_layer(out, extents, [Bytes(source) for source in sources], about)
    return read_layer(Bytes(out.getvalue()))


def test_is_as_made_by_hand() -> None:
    """Zeros stand where the next data goes; what follows in both device and file is joined."""
    extents = [
        Extent(1024, 1024, 0, 512),
        Extent(2048, 512, 1, 0),
        Extent(2560, 512, ZEROS, 0),
        Extent(3072, 512, HOLE, 0),
        Extent(4096, 512, 0, 0),
    ]
    about = About(1 << 20, Uuid(UUID.decode()), message=b"why")
    out = io.BytesIO()
    sources = [Bytes(DATA[:1536]), Bytes(DATA[1536:2048])]
    told = write_layer(out, extents, sources, about)
    index = rows((2, 3, 8), (5, 1, 11 | ZERO), (8, 1, 11)) + PADDING * 253
    names = {"uuid": UUID, "parent": NULL, "message": b"why"}
    header = record(7, **names)  # type: ignore[arg-type]
    trailer = record(6, (4096 + 2048, 256), **names)  # type: ignore[arg-type]
    expected = header + DATA[512:2048] + DATA[:512] + index + trailer
    assert out.getvalue() == expected
    assert told == Written(len(expected), 2048, 3)


def test_mappings_grow_as_those_of_overlaybd() -> None:
    """By 32 KiB, and to less than the 16383 sectors that would fit; zeros are not cut smaller."""
    size = 9 << 20
    found = layer_of([Extent(0, size, 0, 0), Extent(size, 9 << 20, ZEROS, 0)], bytes(size))
    mappings = [(0, 16320, 8), (16320, 18432 - 16320, 8 + 16320)]
    zeros = [(18432, 16383, 18440 | ZERO), (18432 + 16383, 18432 - 16383, 18440 | ZERO)]
    assert listed(found.mappings) == mappings + zeros


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(0, 513, 0, 0)],
        [Extent(1, 512, 0, 0)],
        [Extent(0, 512, 0, 1)],
        [Extent(0, 0, 0, 0)],
        [Extent(-512, 512, 0, 0)],
        [Extent(0, 512, -3, 0)],
        [Extent(0, 512, 255, 0)],
        [Extent(0, 512, 0, -512)],
        [Extent((1 << 59) - 1024, 1024, ZEROS, 0)],
        [Extent(0, 1024, 0, 0), Extent(512, 512, 0, 0)],
        [Extent(512, 512, 0, 0), Extent(0, 512, 0, 0)],
    ],
)
def test_extents_refused(extents: list[Extent]) -> None:
    with pytest.raises(InvalidArgument, match="LSMT extent"):
        layer_of(extents, DATA)


@pytest.mark.parametrize(
    "about", [About(513), About(1 << 60), About(-512), About(0, message=b"x" * 257)]
)
def test_abouts_refused(about: About) -> None:
    with pytest.raises(InvalidArgument, match="LSMT layer"):
        layer_of([], about=about)


def test_no_more_mappings_than_overlaybd_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_MAPPINGS", 256)
    extents = [Extent(at * 1024, 512, 0, 0) for at in range(257)]
    assert len(layer_of(extents[:256], DATA).mappings) == 256
    with pytest.raises(ResourceExhausted):
        layer_of(extents, DATA)


def test_from_an_image() -> None:
    image = bytes(8192) + DATA[:4096] + bytes(2 << 20) + DATA[:512] + bytes(4096)
    found = list(image_extents(Bytes(image)))
    far = 12288 + (2 << 20)
    assert found == [Extent(8192, 4096, 0, 8192), Extent(far, 4096, 0, far)]
    hiding = list(image_extents(Bytes(image), hide=True))
    assert hiding == [
        Extent(0, 8192, ZEROS, 0),
        found[0],
        Extent(12288, 2 << 20, ZEROS, 0),
        found[1],
        Extent(far + 4096, 512, ZEROS, 0),
    ]
    assert list(image_extents(Bytes(bytes(4096)))) == list(image_extents(Bytes(b""))) == []
    with pytest.raises(InvalidArgument, match="multiple of 512"):
        list(image_extents(Bytes(image + b"x")))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 30)),
        max_size=8,
    ),
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(1, 40), st.integers(0, 20), st.booleans()),
        max_size=8,
    ),
)
def test_a_device_made_of_layers(
    runs: list[tuple[bool, int]], writes: list[tuple[int, int, int, bool]]
) -> None:
    """An image below and writes above it: read, exported, and written as one layer."""
    image = b"".join(noise(n * 512) if full else bytes(n * 4096) for full, n in runs)
    lower = layer_of(list(image_extents(Bytes(image))), image, about=About(150 * 512))
    device = bytearray(image[: 150 * 512].ljust(150 * 512, b"\0"))
    log = []
    for start, length, place, zeros in writes:
        piece = bytes(length * 512) if zeros else DATA[place * 512 : (place + length) * 512]
        device[start * 512 : (start + length) * 512] = piece
        told = (ZEROS, 0) if zeros else (0, place * 512)
        log.append(Extent(start * 512, length * 512, *told))
    upper = layer_of(list(replay_writes(log).extents()), DATA, about=About(0))
    stack = Stack([lower, upper])
    assert stack.read_at(0, stack.size) == device
    with tempfile.TemporaryFile() as file:
        export_image(stack, file)
        file.seek(0)
        assert file.read() == device
    sources = [found.source for found in stack.layers]
    merged = io.BytesIO()
    write_layer(merged, stack.extents(), sources, About(stack.size))
    again = Stack([read_layer(Bytes(merged.getvalue()))])
    assert again.read_at(0, again.size) == device


def test_into_a_zfile_in_a_tar() -> None:
    out = io.BytesIO()
    with wrapped(out):
        zfile = ZFileWriter(out)
        told = write_layer(zfile, [Extent(0, len(DATA), 0, 0)], [Bytes(DATA)], About(64 * KIB))
        zfile.close()
    found = open_layer(Bytes(out.getvalue()))
    assert found.source.size == told.size
    assert Stack([found]).read_at(0, 64 * KIB) == DATA + bytes(64 * KIB - len(DATA))


def test_a_blob_is_a_layer_in_a_zfile_in_a_tar_however_it_is_cut() -> None:
    source = Bytes(noise(2 << 20))
    extents = [
        Extent(0, 1536 << 10, 0, 0),
        Extent(2 << 20, 4096, ZEROS, 0),
        Extent(4 << 20, 4096, 0, 1536 << 10),
    ]
    plain = io.BytesIO()
    with wrapped(plain):
        packed = ZFileWriter(plain)
        written = write_layer(packed, extents, [source], ABOUT)
        packed.close()
    out = io.BytesIO()
    done: list[int] = []
    assert write_blob(out, extents, [source], ABOUT, advance=done.append) == written
    assert out.getvalue() == plain.getvalue()
    assert done == [1 << 20, 1536 << 10, (1536 << 10) + 4096]
