"""The label by which a snapshot is given a size of its own, for drivers with filesystems of one."""

from __future__ import annotations

from lamina.core.driver import Snapshot
from lamina.core.labels import MAX_SIZE, SNAPSHOT_REF
from lamina.errors import InvalidArgument

_BLOCK = 4096


def is_extraction(snapshot: Snapshot) -> bool:
    """Tell whether unpacking made it: it is filled and committed, or worthless."""
    return SNAPSHOT_REF in snapshot.labels


def asked_size(snapshot: Snapshot) -> int:
    """Return the size in bytes that the label asks for, whole blocks of 4 KiB, or 0.

    An image's layers have no say in it.

    Raises:
        InvalidArgument: it is no number of bytes.
    """
    text = snapshot.labels.get(MAX_SIZE, "")
    if not text or is_extraction(snapshot):
        return 0
    if not text.isascii() or not text.isdecimal() or not _BLOCK <= int(text) < 1 << 63:
        hint = "write a number of bytes, such as 10737418240"
        raise InvalidArgument(f"use label {MAX_SIZE}", text, hint=hint)
    return int(text) // _BLOCK * _BLOCK
