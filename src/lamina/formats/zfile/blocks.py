"""Blocks: compressed and decompressed, each by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import cast

import lz4.block
import lz4.frame

from lamina.formats.zfile.layout import LENGTH, Algorithm, damaged

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor, ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdCompressor, ZstdDecompressor, ZstdError

Buffer = bytes | memoryview

_ZSTD_LEVEL = 3

# lz4 has no types.
_Lz4Fault = cast("type[Exception]", lz4.block.LZ4BlockError)
_lz4_decompress = cast("Callable[..., bytes]", lz4.block.decompress)
_lz4_compress = cast("Callable[..., bytes]", lz4.block.compress)
_lz4_decompress_frame = cast("Callable[..., tuple[bytes, int, bool]]", lz4.frame.decompress_chunk)
_lz4_context = cast("Callable[[], object]", lz4.frame.create_decompression_context)
_lz4_begin_frame = cast("Callable[..., bytes]", lz4.frame.compress_begin)
_LZ4_FRAME_END = bytes(4)
_LZ4_STORED = 1 << 31
_MARK = os.urandom(8)
"""What no block can have been made to have."""
_MARK_BLOCK = LENGTH.pack(_LZ4_STORED | len(_MARK)) + _MARK


def block_compressor(algorithm: Algorithm) -> Callable[[Buffer], bytes]:
    """Return what compresses blocks, in one thread at a time.

    A block may get longer; equal blocks become equal bytes.
    """
    if algorithm is Algorithm.LZ4:
        return partial(_lz4_compress, store_size=False)
    # To make one for each block takes half as long again as to compress 4 KiB.
    zstd = ZstdCompressor(level=_ZSTD_LEVEL)

    def compress(data: Buffer) -> bytes:
        zstd.set_pledged_input_size(len(data))
        return zstd.compress(data, ZstdCompressor.FLUSH_FRAME)

    return compress


def decompress_block(algorithm: Algorithm, data: Buffer, size: int, at: int) -> bytes:
    """Return the `size` bytes of a block; whatever `data` says, no more are made.

    Args:
        algorithm: how it is compressed.
        data: all of it, without the CRC.
        size: bytes, uncompressed.
        at: its byte in the file, for the error.

    Raises:
        FormatError: it is damaged, or has another number of bytes.
    """
    expected = f"a block of {size} bytes, compressed by {algorithm.name}"
    try:
        found = _decompress(algorithm, data, size)
    except (_Lz4Fault, ZstdError) as error:
        raise damaged(at, expected, error) from error
    if found is None or len(found) != size:
        raise damaged(at, expected, "another number of bytes")
    return found


def decompress_lz4_blocks(blocks: Sequence[bytes], block_size: int, size: int) -> bytes | None:
    """Return the `size` bytes that blocks of LZ4 have together; None where one is damaged.

    They are decompressed as the blocks of one frame, by one call: each call lets other threads run,
    and waiting to go on again costs more than a block of 4 KiB does. However much they have, no
    more is made.

    Args:
        blocks: each with at least one byte, and at most `MAX_STORED`.
        block_size: bytes, uncompressed, of each but the last.
        size: of all.
    """
    whole = size + (len(blocks) - 1) * len(_MARK)
    parts = [_lz4_frame_start(whole)]
    for block in blocks:
        # A mark between two shows that the one before has the size that it should have.
        parts += (LENGTH.pack(len(block)), block, _MARK_BLOCK)
    parts[-1] = _LZ4_FRAME_END
    frame = b"".join(parts)
    try:
        found, _read, is_end = _lz4_decompress_frame(_lz4_context(), frame, max_length=whole)
    except RuntimeError:  # what lz4 raises
        return None
    step = block_size + len(_MARK)
    marks = [found[at : at + len(_MARK)] for at in range(block_size, whole, step)]
    if not is_end or len(found) != whole or marks.count(_MARK) != len(blocks) - 1:
        return None
    view = memoryview(found)
    return b"".join([view[at : at + block_size] for at in range(0, whole, step)])


@lru_cache(64)
def _lz4_frame_start(size: int) -> bytes:
    options = lz4.frame.create_compression_context()
    return _lz4_begin_frame(
        options, source_size=size, block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False
    )


def _decompress(algorithm: Algorithm, data: Buffer, size: int) -> bytes | None:
    """Return at most `size` bytes; None where the frame goes on, or something follows it."""
    if algorithm is Algorithm.LZ4:
        return _lz4_decompress(data, uncompressed_size=size)
    frame = ZstdDecompressor()
    found = frame.decompress(data, size)
    # The end of a frame may be seen only when more is asked for.
    if not frame.eof and frame.decompress(b"", 1):
        return None
    return found if frame.eof and not frame.unused_data else None
