"""CRC-32C against known values: those of RFC 3720, and those that overlaybd's formats have."""

from __future__ import annotations

import google_crc32c

from lamina.formats.crc32c import crc32c

ALL = 0xFFFFFFFF


def test_known_values() -> None:
    assert crc32c(ALL, b"123456789") ^ ALL == 0xE3069283
    assert crc32c(ALL, bytes(32)) ^ ALL == 0x8A9136AA
    assert crc32c(0, b"123456789") == 0x58E3FA20
    assert crc32c(100007, b"123456789") == 0x3C9BD4E0
    assert crc32c(100007, bytes(512)) == 0x2705E0DB


def test_goes_on_from_a_seed() -> None:
    assert crc32c(crc32c(7, b"12345"), b"6789") == crc32c(7, b"123456789")


def test_is_compiled() -> None:
    assert google_crc32c.implementation == "c"
