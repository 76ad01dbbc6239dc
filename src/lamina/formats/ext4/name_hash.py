"""The hash of names by which directories are indexed: half MD4, of unsigned characters."""

from __future__ import annotations

import struct

HASH_SEED = bytes.fromhex("4c616d696e61486ab173536565640001")
"""Of all filesystems; it begins the hash of each name."""
HASH_VERSION = 1
"""DX_HASH_HALF_MD4; that characters are unsigned, the superblock says."""

_START = struct.unpack("<4I", HASH_SEED)
_PART = 32
_WORDS = struct.Struct(">8I")
_MASK = 0xFFFFFFFF
_END = 0xFFFFFFFE
"""No name has this one: it tells readdir that the directory is over."""
_K2 = 0x5A827999
_K3 = 0x6ED9EBA1


def name_hash(name: bytes) -> int:
    """Return the hash of a name, an even number of 32 bits."""
    state = _START
    for at in range(0, len(name), _PART):
        state = _transformed(state, _words(name, at))
    hash = state[1] & ~1
    return _END - 2 if hash == _END else hash


def _words(name: bytes, at: int) -> tuple[int, ...]:
    """Return 32 bytes of a name as words, filled up with what is left of its length."""
    left = len(name) - at
    part = name[at : at + _PART]
    filler = bytes([left & 0xFF])
    whole = len(part) & ~3
    tail = part[whole:]
    if tail:
        part = part[:whole] + tail.rjust(4, filler)
    return _WORDS.unpack(part.ljust(_PART, filler))


def _transformed(
    state: tuple[int, int, int, int], words: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Return the state after 8 words: three rounds, each of 8 steps."""
    a, b, c, d = state
    for one, two, three, four in (words[:4], words[4:]):
        a = a + (d ^ b & (c ^ d)) + one & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = d + (c ^ a & (b ^ c)) + two & _MASK
        d = (d << 7 | d >> 25) & _MASK
        c = c + (b ^ d & (a ^ b)) + three & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = b + (a ^ c & (d ^ a)) + four & _MASK
        b = (b << 19 | b >> 13) & _MASK
    for one, two, three, four in (words[1::2], words[::2]):
        a = a + (b & c) + ((b ^ c) & d) + one + _K2 & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = d + (a & b) + ((a ^ b) & c) + two + _K2 & _MASK
        d = (d << 5 | d >> 27) & _MASK
        c = c + (d & a) + ((d ^ a) & b) + three + _K2 & _MASK
        c = (c << 9 | c >> 23) & _MASK
        b = b + (c & d) + ((c ^ d) & a) + four + _K2 & _MASK
        b = (b << 13 | b >> 19) & _MASK
    for at in (3, 1):
        a = a + (b ^ c ^ d) + words[at] + _K3 & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = d + (a ^ b ^ c) + words[at + 4] + _K3 & _MASK
        d = (d << 9 | d >> 23) & _MASK
        c = c + (d ^ a ^ b) + words[at - 1] + _K3 & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = b + (c ^ d ^ a) + words[at + 3] + _K3 & _MASK
        b = (b << 15 | b >> 17) & _MASK
    one, two, three, four = state
    return a + one & _MASK, b + two & _MASK, c + three & _MASK, d + four & _MASK
