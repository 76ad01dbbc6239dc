"""The digests that pieces are verified by."""

from __future__ import annotations

import hashlib

from blake3 import blake3

from lamina.lazy.unit import Check


def digest_of(check: Check, data: bytes | bytearray | memoryview) -> bytes:
    """Return the digest of decoded bytes; `check` is not `Check.NONE`."""
    if check is Check.BLAKE3:
        return blake3(data).digest()
    return hashlib.sha256(data).digest()
