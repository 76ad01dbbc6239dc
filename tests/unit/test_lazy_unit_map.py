"""The file that says which units are in a cache, whatever is in it."""

from __future__ import annotations

import os
import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.lazy.unit_map import HEADER_BYTES, Identity, State, UnitMap, pack_header

UNITS = 8
IDENTITY = Identity(UNITS, 7, bytes(range(32)), "0c1f7f2e-6b0b-4e5c-9d6b-000000000000")
STATES = bytes(number % 4 for number in range(UNITS))


def _resealed(head: bytes) -> bytes:
    return head[:-4] + struct.pack("<I", zlib.crc32(head[:-4]))


_HEADS = st.sampled_from(
    [
        pack_header(IDENTITY),
        pack_header(IDENTITY._replace(boot="another")),
        pack_header(IDENTITY._replace(inode=8)),
        pack_header(IDENTITY._replace(units=3)),
    ]
)
_DAMAGED = st.tuples(_HEADS, st.integers(0, HEADER_BYTES - 5), st.integers(0, 255)).map(
    lambda change: _resealed(
        change[0][: change[1]] + bytes((change[2],)) + change[0][change[1] + 1 :]
    )
)
_FILES = st.binary(max_size=200) | st.tuples(
    _HEADS | _DAMAGED, st.just(STATES) | st.binary(max_size=2 * UNITS)
).map(b"".join)


def _loaded(fd: int) -> tuple[bytes, str]:
    found = UnitMap(fd, IDENTITY)
    return bytes(found.state(number) for number in range(UNITS)), found.reset_reason


@settings(max_examples=200, deadline=None)
@given(_FILES)
def test_no_map_is_believed_beyond_what_it_is_true_of(raw: bytes) -> None:
    fd = os.memfd_create("map", os.MFD_CLOEXEC)
    try:
        os.write(fd, raw)
        states, _reason = _loaded(fd)
        assert _loaded(fd) == (states, "")
        assert os.fstat(fd).st_size == HEADER_BYTES + UNITS
    finally:
        os.close(fd)
    head, body = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    if head == pack_header(IDENTITY) and len(body) == UNITS and max(body) <= State.DOUBTFUL:
        assert states == body
    elif head == pack_header(IDENTITY._replace(boot="another")):
        assert State.LOCAL not in states
    elif _true_of(head) != _true_of(pack_header(IDENTITY)):
        assert not {State.LOCAL, State.DURABLE} & set(states)


def _true_of(head: bytes) -> tuple[bytes, bytes]:
    """Return magic number and version, and units, inode and table."""
    return head[:12], head[16:64]
