"""CRC-32C, the CRC with the Castagnoli polynomial, as disk formats use it."""

from __future__ import annotations

import google_crc32c

_MASK = 0xFFFFFFFF


def crc32c(seed: int, data: bytes) -> int:
    """Return the register after `data`, from a seed on, inverted neither before nor after.

    What is called CRC-32C elsewhere (RFC 3720) begins with all bits set and inverts the result.
    """
    state: int = google_crc32c.extend(seed ^ _MASK, data)
    return state ^ _MASK
