"""Digests and the ids made of them (OCI image specification, `descriptor.md` and `config.md`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NewType

from lamina.errors import InvalidArgument

Digest = NewType("Digest", str)
"""`algorithm:lower-case hex`, checked by `parse_digest`."""

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest.

    Raises:
        InvalidArgument: not `sha256:` and 64, or `sha512:` and 128, lower-case hex digits.
    """
    match = _DIGEST.fullmatch(text)
    if match is None or len(match[2]) != _HEX_LENGTH[match[1]]:
        raise InvalidArgument("parse digest", text[:160])
    return Digest(text)


def algorithm(digest: Digest) -> str:
    """Return the part before the colon."""
    return digest.partition(":")[0]


def encoded(digest: Digest) -> str:
    """Return the hex part."""
    return digest.partition(":")[2]


def sha256(data: bytes | bytearray) -> Digest:
    """Return the digest of bytes that are in memory anyway."""
    import hashlib  # loads OpenSSL; to check a reference, nothing is hashed

    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Return the chain id of each layer, base first.

    The first is its diff id itself; each later one is the SHA-256 of the ASCII text
    `PREVIOUS_CHAIN_ID DIFF_ID`.
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(sha256(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
