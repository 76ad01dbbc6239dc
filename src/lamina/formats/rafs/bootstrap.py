"""Bootstraps of either version."""

from __future__ import annotations

import struct

from lamina.core.source import RangeSource
from lamina.formats.erofs.layout import EROFS_SUPER_MAGIC_V1, EROFS_SUPER_OFFSET
from lamina.formats.rafs.digests import verify_inodes
from lamina.formats.rafs.flags import damaged
from lamina.formats.rafs.layout import V5_MAGIC, V6_FEATURE_COMPAT
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.v5 import read_v5
from lamina.formats.rafs.v6 import read_v6

_MAGIC = struct.Struct("<I")
_HEAD = EROFS_SUPER_OFFSET + 12
"""Up to the end of an EROFS superblock's `feature_compat`."""


def version_of(source: RangeSource) -> int:
    """Return 5 or 6.

    Raises:
        FormatError: this is no bootstrap of these versions.
    """
    head = source.read_at(0, min(_HEAD, source.size))
    if len(head) >= _MAGIC.size and _MAGIC.unpack_from(head)[0] == V5_MAGIC:
        return 5
    if len(head) == _HEAD:
        magic, _checksum, compat = struct.unpack_from("<III", head, EROFS_SUPER_OFFSET)
        if magic == EROFS_SUPER_MAGIC_V1 and compat & V6_FEATURE_COMPAT:
            return 6
        if magic == EROFS_SUPER_MAGIC_V1:
            got = f"an EROFS image that is none (feature_compat {compat:#x})"
            raise damaged(EROFS_SUPER_OFFSET, "a RAFS bootstrap", got)
    raise damaged(0, "a RAFS bootstrap of version 5 or 6", f"{head[:8].hex()}")


def read_bootstrap(source: RangeSource, *, verify: bool = True) -> Bootstrap:
    """Read the metadata of an image.

    Time and memory are in proportion to the bootstrap: 2 KiB for each file with one chunk, its
    places in `units` and its inode in `tree` included, up to the limits of `metadata`.

    Args:
        source: the bootstrap.
        verify: whether digests of inodes are compared, which version 5 has. They say that the
            bootstrap is whole, not who made it.

    Raises:
        FormatError: this is no bootstrap, it is damaged, or it has what is not supported.
        DigestMismatch: an inode is not what its digest says.
    """
    bootstrap = read_v5(source) if version_of(source) == 5 else read_v6(source)
    if verify:
        verify_inodes(bootstrap)
    return bootstrap
