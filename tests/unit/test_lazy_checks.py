"""The digests of pieces, and codecs whose units can only be decoded whole."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lamina.errors import DataLoss, FormatError
from lamina.lazy.checking import damaged_bytes
from lamina.lazy.checks import digest_of
from lamina.lazy.codecs import decode
from lamina.lazy.unit import Check, Codec
from tests.lazy_layers import ALONE, MemorySource, make_layer, pack

CHECKS = pytest.mark.parametrize("check", [Check.SHA256, Check.BLAKE3], ids=lambda each: each.name)


def test_digests_are_those_that_are_published() -> None:
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert digest_of(Check.SHA256, b"abc").hex() == sha256
    assert digest_of(Check.BLAKE3, memoryview(b"abc")).hex() == blake3


@CHECKS
@pytest.mark.parametrize("codec", ALONE, ids=lambda each: each.name)
def test_every_check_with_every_codec(check: Check, codec: Codec, tmp_path: Path) -> None:
    layer = make_layer([[5000], [3, 700, 4096]], (codec,), check=check)
    directory = layer.create(tmp_path / "layer")
    with closing(layer.open(directory)) as cache:
        cache.complete()
        assert cache.read(0, cache.size) == layer.content
    assert damaged_bytes(directory) == 0
    with open(directory / "data", "r+b") as data:
        data.write(b"damage")
    assert damaged_bytes(directory) == 5000


@CHECKS
def test_another_byte_is_noticed(check: Check, tmp_path: Path) -> None:
    layer = make_layer([[5000]], (Codec.NONE,), check=check)
    directory = layer.create(tmp_path / "layer")
    source = MemorySource(layer.blob[:1000] + b"?" + layer.blob[1001:])
    with (
        closing(layer.open(directory, source)) as cache,
        pytest.raises(DataLoss, match=f"{check.name.lower()}:"),
    ):
        cache.fill(0, cache.size)


def test_a_block_of_lz4_that_has_more_than_is_wanted() -> None:
    text = b"text " * 10_000
    packed = pack(Codec.LZ4_BLOCK, text)
    for length in (0, 1, 4096, len(text)):
        assert bytes(decode(Codec.LZ4_BLOCK, packed, length)) == text[:length]
    with pytest.raises(FormatError, match=f"{len(text) + 1} decoded bytes"):
        decode(Codec.LZ4_BLOCK, packed, len(text) + 1)
    with pytest.raises(FormatError, match="lz4 data before that"):
        decode(Codec.LZ4_BLOCK, packed[:-20], len(text))
