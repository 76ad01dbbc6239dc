"""A gzip layer that stays as it is: a blob of version 6, with nothing but `blob.meta` beside it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from blake3 import blake3

from lamina.core.digest import Digest
from lamina.errors import NotImplementedHere, ResourceExhausted
from lamina.formats.deflate import Point
from lamina.formats.erofs.tar import Implied, tree_from_tar
from lamina.formats.erofs.tree import BLOCK, Extent
from lamina.formats.erofs.tree import Inode as TarInode
from lamina.formats.rafs.flags import ChunkFlags, Digester
from lamina.formats.rafs.layout import MAX_BLOB_CHUNKS, aligned
from lamina.formats.rafs.model import Blob, Chunk
from lamina.formats.rafs.writer.chunks import ChunkPool, Write
from lamina.formats.rafs.writer.contexts import Contexts, Place
from lamina.formats.rafs.writer.layer_files import (
    Files,
    WrittenLayer,
    copy_tree,
    drop_names,
    opaque_of,
    with_chunks,
)
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tail import GZIP_FEATURES, gzip_tail
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import Entry, TarReader

Scanned = Callable[[], tuple[Sequence[Point], "array[int]"]]
"""Returns, once the tar was taken, the arguments of `Contexts`."""


class GzipLayer(NamedTuple):
    """What stays: the SHA-256 of the compressed layer, in hexadecimal digits, and its bytes."""

    id: str
    size: int


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


def index_layer(
    tar: Iterable[bytes],
    scanned: Scanned,
    write: Write,
    *,
    layer: GzipLayer,
    pool: ChunkPool,
    options: RafsOptions,
    lower: Implied | None = None,
    leave_out: Collection[bytes] = (),
    prioritized: Sequence[bytes] = (),
    max_entries: int = 20_000_000,
    max_bytes: int = 1 << 40,
) -> WrittenLayer:
    """Write what tells where a layer's chunks are in it.

    Args:
        tar: chunks of the uncompressed tar; all are taken before the first byte is written.
        scanned: where decompression can begin.
        write: takes the blob with `blob.meta`; never called where no chunk is new.
        layer: the compressed layer.
        pool: gets the layer as a blob, and its chunks.
        options: of version 6.
        lower: as for `write_layer`, as are all that follow.
        leave_out: names in the root that are no files of the image.
        prioritized: paths that are wanted first; the order of data cannot follow it.
        max_entries: members of the archive at most.
        max_bytes: of its files at most.

    Returns:
        As `write_layer`; the digest is that of what was written.

    Raises:
        FormatError: the archive is damaged, or asks for what cannot be.
        NotImplementedHere: a file is sparse, or the layer cannot be decompressed in parts.
        ResourceExhausted: a limit is exceeded.
    """
    bodies = _Bodies(options)
    stream = ChunkStream(tar)
    tree = tree_from_tar(
        stream,
        bodies,
        max_entries=max_entries,
        max_bytes=max_bytes,
        implied=lower,
        whiteouts=lower is not None,
    )
    stream.drain()
    drop_names(tree.root, leave_out)
    files = Files(tree.root, prioritized)
    index = _Index(pool, options, Contexts(*scanned()))
    for inode in sorted(files.order, key=_offset):
        index.add(inode, bodies.digests[_offset(inode)])
    digests = [digest for inode in files.order for digest in bodies.digests[_offset(inode)]]
    blob, digest = index.finish(write, layer)
    copies = with_chunks(files, digests, pool, options.chunk_size)
    if blob is not None:
        pool.blobs.append(blob)
    root = copy_tree(tree.root, copies)
    return WrittenLayer(
        root,
        opaque_of(copies),
        blob,
        digest,
        len(digests),
        tuple(copies[inode] for inode in files.order[: files.prioritized]),
        tuple(files.missing),
        tree.warnings,
    )


def _offset(inode: TarInode) -> int:
    """Return where the tar has a file that has data."""
    return inode.extents[0].offset


class _Bodies:
    """Hashes the chunks of files as they pass by.

    Attributes:
        digests: of a file's chunks, by its byte in the tar.
    """

    def __init__(self, options: RafsOptions) -> None:
        self.digests: dict[int, list[bytes]] = {}
        self._options = options

    def store(self, reader: TarReader, entry: Entry) -> Sequence[Extent]:
        """Take the body of the reader's current entry; return where the tar has it."""
        if entry.sparse is not None:
            what = "leave a sparse file in its gzip layer"
            raise NotImplementedHere(what, repr(entry.name[:200]))
        if not entry.size:
            return ()
        extent = Extent(entry.size, 0, reader.offset)
        found = self.digests[extent.offset] = []
        left = step = self._options.chunk_size
        hashed = self._hash()
        while part := reader.take():
            while part:
                hashed.update(part[:left])
                taken = min(left, len(part))
                part, left = part[taken:], left - taken
                if not left:
                    found.append(hashed.digest())
                    hashed, left = self._hash(), step
        if left < step:
            found.append(hashed.digest())
        return (extent,)

    def _hash(self) -> _Hash:
        return blake3() if self._options.digester is Digester.BLAKE3 else hashlib.sha256()


class _Index:
    """The chunks of a layer that are new, with their places."""

    def __init__(self, pool: ChunkPool, options: RafsOptions, contexts: Contexts) -> None:
        self._pool = pool
        self._step = options.chunk_size
        self._options = options
        self._contexts = contexts
        self._chunks: list[Chunk] = []
        self._places: list[Place] = []
        self._size = 0

    def add(self, inode: TarInode, digests: Sequence[bytes]) -> None:
        """Add the chunks of a file, each behind those before it in the tar."""
        start = _offset(inode)
        for number, digest in enumerate(digests):
            if digest in self._pool.chunks:
                continue
            if len(self._chunks) >= MAX_BLOB_CHUNKS:
                hint = f"it has more than {MAX_BLOB_CHUNKS} chunks: let chunks be larger"
                raise ResourceExhausted("convert layer", hint=hint)
            offset = number * self._step
            size = min(self._step, inode.size - offset)
            self._places.append(self._contexts.place(start + offset, size))
            chunk = Chunk(
                len(self._pool.blobs),
                len(self._chunks),
                digest,
                ChunkFlags.COMPRESSED,
                0,
                0,
                self._size,
                size,
                0,
            )
            self._pool.chunks[digest] = chunk
            self._chunks.append(chunk)
            self._size += aligned(size, BLOCK)

    def finish(self, write: Write, layer: GzipLayer) -> tuple[Blob | None, Digest]:
        """Write the blob with `blob.meta`; return the layer as a blob, and the digest of that."""
        if not self._chunks:
            return None, Digest("sha256:" + hashlib.sha256().hexdigest())
        contexts = self._contexts.made
        # Contexts have grown up to now, and with them what a chunk says of its place.
        for number, (chunk, place) in enumerate(zip(self._chunks, self._places, strict=True)):
            context = contexts[place.context]
            chunk = chunk._replace(
                compressed_offset=context.in_offset, compressed_size=context.in_size
            )
            self._chunks[number] = self._pool.chunks[chunk.digest] = chunk
        end = gzip_tail(self._chunks, self._places, contexts)
        write(end.data)
        digest = hashlib.sha256(end.data).digest()
        blob = Blob(
            layer.id,
            len(self._chunks),
            self._options.compressor,
            self._options.digester,
            GZIP_FEATURES,
            layer.size,
            self._size,
            end.meta,
            end.toc_size,
            end.toc_digest,
            digest,
            len(end.data),
        )
        return blob, Digest("sha256:" + digest.hex())
