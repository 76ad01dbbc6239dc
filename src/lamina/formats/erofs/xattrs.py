"""Extended attributes: an area for the entries that inodes share, and the body of each inode.

An entry is shared where that takes fewer bytes: it is then written once, and each inode that has
it refers to it by 4 bytes.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping

from lamina.formats.erofs.layout import (
    EROFS_XATTR_INDEX_LUSTRE,
    MAX_NAME,
    MAX_SHARED_XATTRS,
    MAX_XATTR_ICOUNT,
    MAX_XATTR_VALUE,
    XATTR_ALIGNMENT,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
    xattr_body_size,
)
from lamina.formats.erofs.unfit import Unfit

_SHARED_ID = struct.Struct("<I")
_EXACT = {name: index for index, name in XATTR_PREFIXES.items() if not name.endswith(b".")}
_PREFIXES = tuple(
    (prefix, index)
    for index, prefix in XATTR_PREFIXES.items()
    if prefix.endswith(b".") and index != EROFS_XATTR_INDEX_LUSTRE
)

MAX_XATTRS = xattr_body_size(MAX_XATTR_ICOUNT) - XATTR_HEADER.size
"""Bytes of the entries of one inode."""


def split_name(name: bytes) -> tuple[int, bytes] | None:
    """Return the index of an attribute's prefix and the rest of its name; None where it has none.

    Those have one that Linux serves from EROFS: `user.`, `trusted.`, `security.` and the two of
    POSIX ACLs. Nothing follows the latter, and something the former.
    """
    index = _EXACT.get(name)
    if index is not None:
        return index, b""
    for prefix, index in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return index, name[len(prefix) :]
    return None


def encode_entry(name: bytes, value: bytes) -> bytes:
    """Return an entry with its padding.

    Raises:
        Unfit: the name has no prefix that EROFS knows, or name or value is too long.
    """
    split = split_name(name)
    if split is None or b"\0" in name or len(name) > MAX_NAME:
        raise Unfit(f"no attribute can be named {name!r}")
    index, rest = split
    if len(value) > MAX_XATTR_VALUE:
        raise Unfit(f"attribute {name!r} has {len(value)} bytes, over {MAX_XATTR_VALUE}")
    entry = XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % XATTR_ALIGNMENT)


def encoded_size(xattrs: Mapping[bytes, bytes]) -> int:
    """Return the bytes of the entries of an inode's attributes; without those that have no prefix.

    Raises:
        Unfit: a name or value is too long.
    """
    return sum(len(encode_entry(name, value)) for name, value in xattrs.items() if split_name(name))


class XattrSet:
    """The attributes that some inodes have in common.

    Attributes:
        entries: encoded, by ascending name.
        uses: how many inodes have just these.
        body: what follows each of these inodes, once `XattrTable.share` has been called.
    """

    __slots__ = ("body", "entries", "uses")

    def __init__(self, entries: tuple[bytes, ...]) -> None:
        self.entries = entries
        self.uses = 0
        self.body = b""

    @property
    def icount(self) -> int:
        """What `i_xattr_icount` says of the body."""
        return (len(self.body) - XATTR_HEADER.size) // XATTR_ALIGNMENT + 1 if self.body else 0


NO_XATTRS = XattrSet(())


class XattrTable:
    """All attributes of an image, each distinct set kept once."""

    def __init__(self) -> None:
        self._sets: dict[tuple[bytes, ...], XattrSet] = {}
        self._entries: dict[tuple[bytes, bytes], bytes] = {}

    def add(self, xattrs: Mapping[bytes, bytes]) -> XattrSet:
        """Count one more inode with these attributes.

        Raises:
            Unfit: see `encode_entry`; or they are too many.
        """
        entries = tuple(self._entry(name, xattrs[name]) for name in sorted(xattrs))
        found = self._sets.get(entries)
        if found is None:
            size = sum(map(len, entries))
            if size > MAX_XATTRS:
                raise Unfit(f"its attributes have {size} bytes, over 256 KiB")
            found = self._sets[entries] = XattrSet(entries)
        found.uses += 1
        return found

    def _entry(self, name: bytes, value: bytes) -> bytes:
        entry = self._entries.get((name, value))
        if entry is None:
            entry = self._entries[name, value] = encode_entry(name, value)
        return entry

    def share(self) -> bytes:
        """Give each set its body; return the shared entries, which begin at id 0."""
        uses: Counter[bytes] = Counter()
        for xattrs in self._sets.values():
            for entry in xattrs.entries:
                uses[entry] += xattrs.uses
        ids: dict[bytes, int] = {}
        area = bytearray()
        for entry, count in uses.items():
            if count * len(entry) > count * _SHARED_ID.size + len(entry):
                ids[entry] = len(area) // XATTR_ALIGNMENT
                area += entry
        for xattrs in self._sets.values():
            xattrs.body = _body(xattrs.entries, ids)
        return bytes(area)


def _body(entries: tuple[bytes, ...], ids: Mapping[bytes, int]) -> bytes:
    shared = [entry for entry in entries if entry in ids][:MAX_SHARED_XATTRS]
    by_id = frozenset(shared)
    parts = [XATTR_HEADER.pack(0, len(shared))]
    parts += [_SHARED_ID.pack(ids[entry]) for entry in shared]
    parts += [entry for entry in entries if entry not in by_id]
    return b"".join(parts)
