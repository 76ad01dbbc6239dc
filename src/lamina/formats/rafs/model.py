"""What a bootstrap of either version is read into."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from lamina.formats.rafs.flags import BlobFeatures, Compressor, Digester, SuperFlags

DIGEST_LENGTH = 32
UNKNOWN = -1
"""As a number that a bootstrap does not have."""
_NONE: Mapping[bytes, bytes] = MappingProxyType({})


class Chunk(NamedTuple):
    """A run of bytes that a blob has; all numbers in bytes.

    Attributes:
        blob: index of the blob.
        number: of the chunk in the blob, from 0 on.
        digest: of the uncompressed bytes; empty where the bootstrap has none.
        flags: `ChunkFlags`.
        compressed_offset: byte of the blob; UNKNOWN where only `blob.meta` has it.
        compressed_size: as little known; 0 for a chunk in a batch.
        uncompressed_offset: byte of the blob's device.
        uncompressed_size: at least 1.
        crc32: CRC-32C of the uncompressed bytes, if flags say so.
    """

    blob: int
    number: int
    digest: bytes
    flags: int
    compressed_offset: int
    compressed_size: int
    uncompressed_offset: int
    uncompressed_size: int
    crc32: int


class FileChunk(NamedTuple):
    """A chunk of a file.

    Attributes:
        offset: byte of the file.
        chunk: what is there.
    """

    offset: int
    chunk: Chunk


class MetaPlace(NamedTuple):
    """Where a blob's `blob.meta` is; its header of 4096 bytes follows the compressed bytes.

    Attributes:
        compressor: how all but the header is compressed.
        offset: byte of the blob that has it.
        compressed_size: bytes.
        uncompressed_size: bytes.
    """

    compressor: Compressor
    offset: int
    compressed_size: int
    uncompressed_size: int


class Blob(NamedTuple):
    """An entry of the blob table.

    Attributes:
        id: 64 digits, as a rule the SHA-256 of the blob; 64 times x for that in which the bootstrap
            lies.
        chunk_count: UNKNOWN in old bootstraps.
        compressor: of its chunks.
        digester: of their digests.
        features: what else holds for it.
        compressed_size: bytes of the blob, in old images of its data only; 0 where not known.
        uncompressed_size: bytes of its device; 0 where not known.
        meta: where `blob.meta` is; None for a blob without.
        toc_size: bytes of the TOC with its tar header, at the end of the blob; 0 for none.
        toc_digest: SHA-256 of them.
        meta_digest: of a SEPARATE blob, what the blob with `blob.meta` is called.
        meta_size: bytes of that.
        readahead: offset and length of what is wanted first, of version 5.
    """

    id: str
    chunk_count: int
    compressor: Compressor
    digester: Digester
    features: BlobFeatures = BlobFeatures(0)
    compressed_size: int = 0
    uncompressed_size: int = 0
    meta: MetaPlace | None = None
    toc_size: int = 0
    toc_digest: bytes = b""
    meta_digest: bytes = b""
    meta_size: int = 0
    readahead: tuple[int, int] = (0, 0)

    @property
    def data_size(self) -> int:
        """Bytes of chunks in the blob at most; 0 where not known."""
        features, size = self.features, self.compressed_size
        if features & BlobFeatures.SEPARATE or not features & BlobFeatures.CAP_TAR_TOC:
            return size
        header = 512 if features & BlobFeatures.HAS_TAR_HEADER else 0
        end = self.meta.offset if self.meta else size
        return max(end - header, 0)


@dataclass(slots=True, eq=False)
class Inode:
    """A file of any type. The same object under several names is a hard link.

    Attributes:
        number: inode number (version 5) or nid (version 6).
        mode: type and permissions, as in `st_mode`.
        nlink: as the bootstrap says, which need not be true.
        mtime: nanoseconds since the epoch, possibly negative.
        rdev: `os.makedev` number of a device.
        size: bytes of a regular file.
        digest: of what it has, in version 5; else empty.
        target: what a symbolic link points to.
        chunks: of a regular file, by ascending offset; what they leave out is zeros.
        children: names and inodes of a directory, in the bootstrap's order.
        xattrs: full names and values.
    """

    number: int
    mode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: int = 0
    size: int = 0
    digest: bytes = b""
    target: bytes = b""
    chunks: Sequence[FileChunk] = ()
    children: dict[bytes, Inode] = field(default_factory=dict)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NONE)

    @property
    def is_directory(self) -> bool:
        """Whether it has children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it has chunks."""
        return stat.S_ISREG(self.mode)


class Bootstrap(NamedTuple):
    """The metadata of an image.

    Attributes:
        version: 5 or 6.
        flags: of the superblock.
        chunk_size: bytes of a file's chunks, but for the last.
        block: bytes that places on a device are counted in: 4096, or 512 of TARFS; of version 5,
            whose places are counted in bytes, 1.
        digester: of digests of inodes and chunks.
        blobs: the blob table.
        root: the directory where all begins.
        prefetch: files and directories wanted first, in order.
    """

    version: int
    flags: SuperFlags
    chunk_size: int
    block: int
    digester: Digester
    blobs: Sequence[Blob]
    root: Inode
    prefetch: Sequence[Inode]
