"""How chunks are compressed: each alone, and kept as it is where that makes it no smaller."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import cast

import lz4.block
from isal import igzip_lib

from lamina.formats.rafs.flags import Compressor

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor

_ISAL_BEST = 3
_ZSTD_LEVEL = 3
_lz4 = cast("Callable[..., bytes]", lz4.block.compress)


def compress(compressor: Compressor, data: bytes) -> bytes:
    """Return what a blob has of some bytes: fewer, or the bytes themselves."""
    if compressor is Compressor.NONE:
        return data
    packed = _PACKERS[compressor](data)
    return packed if len(packed) < len(data) else data


def _lz4_block(data: bytes) -> bytes:
    return _lz4(data, store_size=False)


def _gzip(data: bytes) -> bytes:
    return igzip_lib.compress(data, _ISAL_BEST, igzip_lib.COMP_GZIP)


def _zstd(data: bytes) -> bytes:
    return ZstdCompressor(_ZSTD_LEVEL).compress(data, ZstdCompressor.FLUSH_FRAME)


_PACKERS: dict[Compressor, Callable[[bytes], bytes]] = {
    Compressor.LZ4_BLOCK: _lz4_block,
    Compressor.GZIP: _gzip,
    Compressor.ZSTD: _zstd,
}
