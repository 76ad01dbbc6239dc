"""POSIX ACLs: as the attribute that system calls have (version 2), and as ext4 stores them.

Both begin with a version of 4 bytes. An entry of the former has tag, permissions and id; in ext4
(version 1) only those of named users and groups have an id.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_XATTR_VERSION = 2
_DISK_VERSION = 1
_LONG = struct.Struct("<HHI")
_SHORT = struct.Struct("<HH")

_USER_OBJ = 0x1
_USER = 0x2
_GROUP_OBJ = 0x4
_GROUP = 0x8
_MASK = 0x10
_OTHER = 0x20
_NAMED = frozenset([_USER, _GROUP])
_ORDER = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_NO_ID = 0xFFFFFFFF

Entries = list[tuple[int, int, int]]
"""Tag, permissions and id."""


def parse(value: bytes) -> Entries | None:
    """Return the entries of the attribute; None where Linux takes none such."""
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _LONG.size:
        return None
    if _VERSION.unpack_from(value)[0] != _XATTR_VERSION:
        return None
    entries = list(_LONG.iter_unpack(value[_VERSION.size :]))
    return entries if _is_valid(entries) else None


def _is_valid(entries: Entries) -> bool:
    tags = [tag for tag, _, _ in entries]
    if any(tag not in _ORDER for tag in tags) or tags != sorted(tags, key=_ORDER.index):
        return False
    if any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)):
        return False
    masks = tags.count(_MASK)
    if masks > 1 or (not masks and not _NAMED.isdisjoint(tags)):
        return False
    return all(
        not permissions & ~7 and (tag not in _NAMED or id != _NO_ID)
        for tag, permissions, id in entries
    )


def stored(entries: Entries) -> bytes:
    """Return an ACL as ext4 has it."""
    parts = [_VERSION.pack(_DISK_VERSION)]
    for tag, permissions, id in entries:
        if tag in _NAMED:
            parts.append(_LONG.pack(tag, permissions, id))
        else:
            parts.append(_SHORT.pack(tag, permissions))
    return b"".join(parts)


def with_mode(entries: Entries, mode: int) -> Entries:
    """Return an access ACL as chmod(2) leaves it; it grants what the mode says."""
    has_mask = any(tag == _MASK for tag, _, _ in entries)
    group = _MASK if has_mask else _GROUP_OBJ
    shifts = {_USER_OBJ: 6, group: 3, _OTHER: 0}
    return [
        (tag, mode >> shifts[tag] & 7 if tag in shifts else permissions, id)
        for tag, permissions, id in entries
    ]


def says_no_more_than_mode(entries: Sequence[tuple[int, int, int]]) -> bool:
    """Tell whether Linux keeps the mode alone."""
    return {tag for tag, _, _ in entries} == {_USER_OBJ, _GROUP_OBJ, _OTHER}
