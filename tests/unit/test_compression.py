from __future__ import annotations

import gzip
import io
import random
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.compression import Compression, compressor, decompress, detect

DATA = random.Random(1).randbytes(100_000) + b"text " * 100_000


def reader(data: bytes, most: int = 1 << 20) -> Callable[[int], bytes]:
    file = io.BytesIO(data)
    return lambda length: file.read(min(length, most))


def inflate(data: bytes, most: int = 1 << 20, *, sniff: bool = True) -> bytes:
    return b"".join(decompress(reader(data, most), sniff=sniff))


def zstd(data: bytes) -> bytes:
    return packed(data, Compression.ZSTD)


def packed(data: bytes, compression: Compression) -> bytes:
    stream = compressor(compression)
    return stream.compress(data) + stream.flush()


SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"


@pytest.mark.parametrize("most", [1, 3, 1000, 1 << 20])
@pytest.mark.parametrize("pack", [gzip.compress, zstd, bytes], ids=["gzip", "zstd", "plain"])
def test_round_trip(pack: Callable[[bytes], bytes], most: int) -> None:
    data = DATA if most > 1 else DATA[-20_000:]
    assert inflate(pack(data), most) == data


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_members_and_frames(pack: Callable[[bytes], bytes]) -> None:
    data = b"".join(pack(part) for part in (b"one ", b"", DATA, b"two"))
    for most in (7, 1 << 20):
        assert inflate(data, most) == b"one " + DATA + b"two"


def test_skippable_frames() -> None:
    data = SKIPPABLE + zstd(b"one") + SKIPPABLE + zstd(b"two") + SKIPPABLE
    assert inflate(data) == b"onetwo"


def test_gzip_header_with_everything() -> None:
    raw = gzip.compress(b"content")
    extra = b"\x1f\x8b\x08\x1c" + raw[4:10] + b"\x02\0ab" + b"name\0" + b"comment\0" + raw[10:]
    assert inflate(extra) == b"content"


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
@pytest.mark.parametrize("rest", [b"\0" * 512, b"garbage", b"\x1f"])
def test_what_follows_must_be_a_member(pack: Callable[[bytes], bytes], rest: bytes) -> None:
    with pytest.raises(FormatError):
        inflate(pack(DATA) + rest)


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_cut_off_anywhere(pack: Callable[[bytes], bytes]) -> None:
    whole = pack(b"some text that is compressed, some text that is not")
    for length in range(5, len(whole)):
        with pytest.raises(FormatError) as caught:
            inflate(whole[:length])
        assert caught.value.offset == length


@settings(max_examples=200)
@given(position=st.integers(10, 100_000), value=st.integers(1, 255))
def test_damaged_gzip_is_never_taken_for_whole(position: int, value: int) -> None:
    whole = bytearray(GZIPPED)
    whole[position % (len(whole) - 10) + 10] ^= value
    with pytest.raises(FormatError):
        inflate(bytes(whole))


GZIPPED = gzip.compress(b"".join(b"%d " % number for number in range(20_000)))


def test_detection() -> None:
    assert detect(gzip.compress(b"")) is Compression.GZIP
    assert detect(zstd(b"")) is detect(SKIPPABLE) is Compression.ZSTD
    assert detect(b"") is detect(b"\x1f\x8b") is detect(b"name") is Compression.NONE
    assert inflate(gzip.compress(b"x"), sniff=False) == gzip.compress(b"x")


@pytest.mark.parametrize(("compression", "tool"), [("gzip", "gzip"), ("zstd", "zstd")])
def test_other_programs_read_it(compression: str, tool: str) -> None:
    data = packed(DATA, Compression(compression))
    try:
        done = subprocess.run([tool, "-dc"], input=data, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip(f"{tool} is not installed")
    assert done.stdout == DATA
    assert packed(DATA, Compression(compression)) == data
