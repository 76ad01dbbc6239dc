"""Digests of chunks, and of the inodes of version 5."""

from __future__ import annotations

import hashlib
import stat

from blake3 import blake3

from lamina.errors import DigestMismatch
from lamina.formats.rafs.flags import Digester
from lamina.formats.rafs.model import Bootstrap, Inode

_WHAT = "verify a RAFS bootstrap: digest of inode"


def digest_of(digester: Digester, data: bytes | memoryview) -> bytes:
    """Return the 32 bytes."""
    if digester is Digester.BLAKE3:
        return blake3(data).digest()
    return hashlib.sha256(data).digest()


def verify_inodes(bootstrap: Bootstrap) -> None:
    """Compare the digest of each inode with what it has, from the chunks' digests up to the root.

    A regular file's is that of its chunks' digests, a directory's that of its children's, a
    symbolic link's that of its target; all others have that of nothing. Only version 5 has them.

    Raises:
        DigestMismatch: one is wrong.
    """
    if bootstrap.version != 5:
        return
    found = [bootstrap.root]
    for inode in found:
        found += [child for child in inode.children.values() if child.is_directory]
    for directory in found:
        for name, child in directory.children.items():
            _verify(bootstrap.digester, name, child)
    _verify(bootstrap.digester, b"/", bootstrap.root)


def _verify(digester: Digester, name: bytes, inode: Inode) -> None:
    got = digest_of(digester, content_of(inode))
    if got != inode.digest:
        subject = f"{inode.number} ({name.decode(errors='backslashreplace')})"
        raise DigestMismatch(_WHAT, subject, expected=inode.digest.hex(), got=got.hex())


def content_of(inode: Inode) -> bytes:
    """Return what an inode's digest is that of."""
    if inode.is_regular:
        return b"".join([found.chunk.digest for found in inode.chunks])
    if inode.is_directory:
        return b"".join([child.digest for child in inode.children.values()])
    return inode.target if stat.S_ISLNK(inode.mode) else b""
