"""Decoding one unit to a known length."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.lazy.codecs import decode
from lamina.lazy.unit import Codec
from tests.lazy_layers import ALONE, pack

CODECS = pytest.mark.parametrize("codec", ALONE, ids=lambda codec: codec.name)
STREAMS = pytest.mark.parametrize(
    "codec", [Codec.NONE, Codec.GZIP, Codec.ZSTD], ids=lambda codec: codec.name
)
PACKED = pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD], ids=lambda codec: codec.name)
DATA = random.Random(5).randbytes(70_000) + bytes(30_000)


@CODECS
@given(length=st.integers(0, len(DATA)))
def test_any_beginning(codec: Codec, length: int) -> None:
    assert bytes(decode(codec, pack(codec, DATA), length)) == DATA[:length]


@PACKED
def test_members_one_after_the_other(codec: Codec) -> None:
    packed = b"".join(pack(codec, DATA[start : start + 999]) for start in range(0, 9990, 999))
    assert bytes(decode(codec, packed, 9990)) == DATA[:9990]
    assert bytes(decode(codec, packed, 5001)) == DATA[:5001]


@PACKED
def test_empty_members_bring_nothing_and_do_no_harm(codec: Codec) -> None:
    packed = pack(codec, b"") + pack(codec, b"ab") + pack(codec, b"") + pack(codec, b"cd")
    assert bytes(decode(codec, packed, 4)) == b"abcd"


@STREAMS
def test_what_follows_is_not_looked_at(codec: Codec) -> None:
    packed = pack(codec, DATA) + b"rubbish"
    assert bytes(decode(codec, memoryview(packed), len(DATA))) == DATA


@CODECS
def test_a_stream_that_ends_too_soon(codec: Codec) -> None:
    packed = pack(codec, DATA)
    for data, length in [(packed, len(DATA) + 1), (packed[:500], len(DATA)), (b"", 1)]:
        with pytest.raises(FormatError, match=r"decoded bytes|data before"):
            decode(codec, data, length)


@PACKED
def test_rubbish(codec: Codec) -> None:
    with pytest.raises(FormatError):
        decode(codec, b"rubbish" * 10, 10)
    with pytest.raises(FormatError):
        decode(codec, pack(codec, b"ab") + b"rubbish" * 10, 10)


@CODECS
@given(st.integers(0, 20_000), st.integers(0, 255))
def test_damage_never_hangs_or_brings_more(codec: Codec, position: int, value: int) -> None:
    damaged = bytearray(pack(codec, DATA[:20_000]))
    damaged[position % len(damaged)] = value
    try:
        assert len(decode(codec, bytes(damaged), 20_000)) == 20_000
    except FormatError:
        pass


@PACKED
def test_a_bomb_costs_no_more_than_what_is_wanted_of_it(codec: Codec) -> None:
    bomb = pack(codec, bytes(64 << 20))
    tracemalloc.start()
    assert len(decode(codec, bomb, 1000)) == 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
