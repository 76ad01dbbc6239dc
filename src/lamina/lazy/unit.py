"""What is fetched, decoded and verified at a time: units, and the pieces that they are made of."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 4096
"""Bytes; units start at multiples of it in the cache file."""
MAX_UNIT_BYTES = 512 << 20
"""Most bytes of a unit, in the source, decoded, and in the cache: one is held in memory whole."""
MAX_CACHE_BYTES = BLOCK << 32


class Codec(enum.IntEnum):
    """How a unit's bytes are encoded in the source; the numbers are those of the file format."""

    NONE = 0
    GZIP = 1
    """One or several gzip members (RFC 1952)."""
    ZSTD = 2
    """One or several zstd frames (RFC 8878)."""
    LZ4_BLOCK = 3
    """One LZ4 block, without frame or length."""
    ZRAN = 4
    """Part of a gzip stream, from its middle on; whoever opens the cache knows how to begin."""


class Check(enum.IntEnum):
    """How a piece is verified; the numbers are those of the file format."""

    NONE = 0
    """Not at all. Only for a layer that its configuration exempts from verification."""
    SHA256 = 1
    BLAKE3 = 2


DIGEST_LENGTH = 32


class Piece(NamedTuple):
    """One chunk of one file.

    Attributes:
        inner_offset: where its bytes start in the decoded stream of its unit.
        length: in bytes, at least 1.
        cache_offset: where they go in the cache file.
        check: what `digest` is.
        digest: of the decoded bytes, `DIGEST_LENGTH` long; zeros with `Check.NONE`.
    """

    inner_offset: int
    length: int
    cache_offset: int
    check: Check
    digest: bytes


class Unit(NamedTuple):
    """The smallest thing that is fetched; all numbers in bytes.

    Attributes:
        source_offset: where its encoded bytes start in the source.
        source_length: how many they are; may include bytes that no piece needs.
        cache_offset: where its decoded bytes start in the cache file; a multiple of `BLOCK`.
        cache_length: up to the end of its last piece. The rest of the last block is zeros, as is
            what lies between pieces.
        codec: how to decode them.
        pieces: in order of `cache_offset`, not overlapping; at least one.
    """

    source_offset: int
    source_length: int
    cache_offset: int
    cache_length: int
    codec: Codec
    pieces: Sequence[Piece]
