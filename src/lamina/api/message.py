"""gRPC messages inside DATA frames: a flag, a length of four bytes, the message."""

from __future__ import annotations

from struct import Struct

from lamina.errors import Internal, NotImplementedHere, ResourceExhausted

PREFIX_SIZE = 5
MESSAGE_LIMIT = 16 * 1024 * 1024
"""Bytes of the largest message that is taken, as in containerd."""

_PREFIX = Struct(">BL")
assert _PREFIX.size == PREFIX_SIZE


def pack(message: bytes) -> bytes:
    """Put the prefix before an uncompressed message."""
    return _PREFIX.pack(0, len(message)) + message


def message_size(body: bytes | bytearray, encoding: str) -> int:
    """Return the size that the prefix at the beginning of `body` tells.

    Args:
        body: at least `PREFIX_SIZE` bytes.
        encoding: what the header field `grpc-encoding` says, or nothing.

    Raises:
        NotImplementedHere: it is compressed.
        Internal: it is no prefix.
        ResourceExhausted: the message is larger than `MESSAGE_LIMIT`.
    """
    flag, size = _PREFIX.unpack_from(body)
    if flag == 1 and encoding not in {"", "identity"}:
        raise NotImplementedHere("read a message compressed with", encoding)
    if flag:
        raise Internal("read a message: its compression flag is set, but no compression named")
    if size > MESSAGE_LIMIT:
        raise ResourceExhausted(f"read a message of {size} bytes, more than {MESSAGE_LIMIT}")
    return int(size)


def unpack(body: bytes | bytearray, encoding: str) -> bytes:
    """Return the one message that `body` consists of; raises as `message_size`, and Internal."""
    if len(body) < PREFIX_SIZE:
        raise Internal(f"read a message: it ends after {len(body)} bytes")
    size = message_size(body, encoding)
    if len(body) != PREFIX_SIZE + size:
        raise Internal(f"read one message of {size} bytes: {len(body) - PREFIX_SIZE} have come")
    return bytes(memoryview(body)[PREFIX_SIZE:])
