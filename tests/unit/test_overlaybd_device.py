"""Devices of overlaybd layers: what is fetched at a time, and putting it together."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.source import RangeSource
from lamina.errors import FormatError, InvalidArgument, OutOfRange
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent
from lamina.formats.lsmt.reader import Layer, open_layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.overlaybd.annotations import (
    ACCELERATION,
    BLOB_DIGEST,
    BLOB_SIZE,
    FS_TYPE,
    OLD_TARGET_DIGEST,
    OLD_TARGET_MEDIA_TYPE,
)
from lamina.formats.zfile.layout import Algorithm
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from lamina.snapshotters.overlaybd.device import WINDOW, windows
from lamina.snapshotters.overlaybd.device_source import DeviceSource
from lamina.snapshotters.overlaybd.kept_source import Keeper, KeptSource
from lamina.snapshotters.overlaybd.labels import (
    Blob,
    blob_in,
    filesystem_in,
    is_acceleration,
    is_gzip_target,
    target_in,
)
from tests.erofs import Bytes
from tests.rafs import noise

SIZE = 1 << 20
BLOCK = 4096
DIGEST = "sha256:" + "1" * 64
PACKINGS = [None, ZFileOptions(), ZFileOptions(Algorithm.ZSTD, 32768)]

sectors = st.integers(0, SIZE // 512 - 1)
pieces = st.lists(st.tuples(sectors, st.integers(1, 300), st.booleans()), max_size=8)


class Counting:
    """A source that counts what is asked of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.asked: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return self.data[offset : offset + length]


@functools.cache
def device_bytes(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def layer_of(found: list[tuple[int, int, bool]], seed: int, packing: ZFileOptions | None) -> bytes:
    """Return a layer that has some ranges of a device: data, or zeros."""
    data = device_bytes(seed)
    position = 0
    extents = []
    for start, length, zeros in sorted(found):
        first, stop = max(position, start * 512), min(SIZE, (start + length) * 512)
        if first < stop:
            place = 0 if zeros else first
            extents.append(Extent(first, stop - first, ZEROS if zeros else 0, place))
            position = stop
    out = io.BytesIO()
    if packing is None:
        write_layer(out, extents, [Bytes(data)], About(SIZE))
        return out.getvalue()
    zfile = ZFileWriter(out, packing)
    write_layer(zfile, extents, [Bytes(data)], About(SIZE))
    zfile.close()
    return out.getvalue()


@given(st.lists(pieces, min_size=1, max_size=3), st.data())
def test_device_is_what_its_layers_show(
    layers: list[list[tuple[int, int, bool]]], data: st.DataObject
) -> None:
    opened = [
        open_layer(Bytes(layer_of(found, number, PACKINGS[number % 3])))
        for number, found in enumerate(layers)
    ]
    stack = Stack(opened)
    source = DeviceSource(stack, SIZE + BLOCK)
    whole = stack.read_at(0, SIZE) + bytes(BLOCK)
    for _ in range(4):
        start = data.draw(st.integers(0, SIZE + BLOCK))
        length = data.draw(st.integers(0, min(1 << 18, SIZE + BLOCK - start)))
        assert source.read_at(start, length) == whole[start : start + length]


def test_reads_behind_the_end_are_refused() -> None:
    stack = Stack([open_layer(Bytes(layer_of([(0, 8, False)], 1, None)))])
    source = DeviceSource(stack, SIZE)
    for start, length in ((SIZE, 1), (-1, 1), (0, -1), (1, SIZE)):
        with pytest.raises(OutOfRange):
            source.read_at(start, length)


def test_near_pieces_of_a_layer_are_one_request() -> None:
    found = [(8 * number, 8, False) for number in range(0, 200, 2)]
    counting = Counting(layer_of(found, 1, ZFileOptions()))
    layer = open_layer(counting)
    counting.asked.clear()
    source = DeviceSource(Stack([layer]), SIZE)
    source.read_at(0, 200 * BLOCK)
    [(_, length)] = counting.asked
    assert length < 105 * (BLOCK + 64)


def test_failure_of_one_layer_is_that_of_the_read() -> None:
    class Broken(Counting):
        def read_at(self, offset: int, length: int) -> bytes:
            if offset >= 8192 + 200 * 512:
                raise OutOfRange("gone")
            return super().read_at(offset, length)

    lower = open_layer(Bytes(layer_of([(0, 1600, False)], 1, None)))
    upper = open_layer(Bytes(layer_of([(400, 300, False)], 2, None)))
    broken: RangeSource = Broken(noise(1 << 20))
    stack = Stack([Layer(broken, lower.about, lower.mappings), upper])
    with pytest.raises(OutOfRange, match="gone"):
        DeviceSource(stack, SIZE).read_at(0, 1600 * 512)


@given(pieces)
def test_windows_have_all_data_and_are_apart(found: list[tuple[int, int, bool]]) -> None:
    layer = open_layer(Bytes(layer_of(found, 1, None)))
    extents = [*layer.mappings.extents()]
    parts = [*windows(extents)]
    stop = 0
    for start, length in parts:
        assert start >= stop
        assert not start % BLOCK
        assert length > 0
        assert start // WINDOW == (start + length - 1) // WINDOW
        stop = start + length
    has = {
        sector for start, length in parts for sector in range(start // 512, (start + length) // 512)
    }
    assert has >= {
        sector
        for extent in extents
        if extent.layer >= 0
        for sector in range(extent.offset // 512, (extent.offset + extent.length) // 512)
    }


def test_zeros_and_holes_are_fetched_from_nowhere() -> None:
    extents = [Extent(0, WINDOW, ZEROS, 0), Extent(WINDOW, WINDOW, HOLE, 0)]
    assert [*windows(extents)] == []


def test_blob_is_asked_once_for_what_it_says_of_itself(tmp_path: Path) -> None:
    blob = layer_of([(0, 2000, False)], 1, ZFileOptions())
    counting = Counting(blob)
    keeper = Keeper(counting)
    open_layer(keeper)
    assert len(counting.asked) == 2
    keeper.write(tmp_path / "kept")
    counting.asked.clear()
    kept = KeptSource(tmp_path / "kept", counting)
    layer = open_layer(kept)
    assert counting.asked == []
    kept.forget()
    assert Stack([layer]).read_at(0, BLOCK) == device_bytes(1)[:BLOCK]
    assert counting.asked


def test_small_blob_is_one_request(tmp_path: Path) -> None:
    counting = Counting(layer_of([(0, 8, False)], 1, ZFileOptions()))
    open_layer(Keeper(counting))
    assert counting.asked == [(0, counting.size)]


def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    blob = layer_of([(0, 8, False)], 1, None)
    path = tmp_path / "kept"
    Keeper(Bytes(blob)).write(path)
    good = path.read_bytes()
    for length in range(len(good)):
        if length > 64 and length % 997:
            continue
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            KeptSource(path, Bytes(blob))
    path.write_bytes(good + b"x")
    with pytest.raises(FormatError):
        KeptSource(path, Bytes(blob))
    path.write_bytes(b"LaminaKP" + (2).to_bytes(8, "little") + good[16:])
    with pytest.raises(FormatError):
        KeptSource(path, Bytes(blob))


def test_labels() -> None:
    image = {"containerd.io/snapshot/cri.image-ref": "host/image:1"}
    native = {**image, BLOB_DIGEST: DIGEST, BLOB_SIZE: "12", FS_TYPE: "xfs;;-f"}
    assert blob_in(native) == Blob("host/image:1", DIGEST, 12, plain_http=False)  # type: ignore[arg-type]
    assert filesystem_in(native) == "xfs"
    assert filesystem_in(image) == "ext4"
    assert blob_in(image) is None
    assert target_in(native) is None
    other = {**native, "containerd.io/snapshot/image-ref": "host/other:1"}
    assert blob_in(other) == Blob("host/other:1", DIGEST, 12, plain_http=False)  # type: ignore[arg-type]
    turbo = {
        **native,
        OLD_TARGET_DIGEST: DIGEST,
        OLD_TARGET_MEDIA_TYPE: "application/vnd.oci.image.layer.v1.tar+gzip",
    }
    assert blob_in(turbo) is None
    assert target_in(turbo) == Blob("host/image:1", DIGEST, 0, plain_http=False)  # type: ignore[arg-type]
    assert is_gzip_target(turbo)
    assert is_acceleration({ACCELERATION: "yes"})
    assert not is_acceleration(native)
    for wrong in ({BLOB_SIZE: "x"}, {BLOB_DIGEST: "none"}):
        with pytest.raises(InvalidArgument):
            blob_in({**native, **wrong})
