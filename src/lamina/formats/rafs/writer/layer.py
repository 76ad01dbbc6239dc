"""A layer of an image on its way: its tree, and its files' data as a blob."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lamina.core.digest import Digest
from lamina.formats.erofs.data import DataArea
from lamina.formats.erofs.tar import Implied, TarTree, tree_from_tar
from lamina.formats.erofs.tree import BLOCK, HOLE
from lamina.formats.erofs.tree import Inode as TarInode
from lamina.formats.rafs.model import Blob, Inode
from lamina.formats.rafs.writer.chunks import ChunkPool, ChunkWriter, Write
from lamina.formats.rafs.writer.layer_files import (
    Files,
    WrittenLayer,
    copy_tree,
    drop_names,
    opaque_of,
    with_chunks,
)
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tail import FEATURES, tail
from lamina.formats.stream import ChunkStream
from lamina.formats.temporary import spooling


def write_layer(
    tar: Iterable[bytes],
    write: Write,
    *,
    temporary: Path,
    pool: ChunkPool,
    options: RafsOptions,
    lower: Implied | None = None,
    leave_out: Collection[bytes] = (),
    prioritized: Sequence[bytes] = (),
    threads: int = 0,
    max_entries: int = 20_000_000,
    max_bytes: int = 1 << 40,
    advance: Callable[[int, int], object] | None = None,
) -> WrittenLayer:
    """Write what a layer brings as a blob.

    Files are in the blob in the order of the tar, behind those that are wanted first.

    Args:
        tar: chunks of the uncompressed tar; all are taken before the first byte is written.
        write: takes the blob; never called where no chunk is new.
        temporary: directory for a file without a name, as large as the tar.
        pool: gets the blob and its chunks; those that it has are not written.
        options: how.
        lower: returns directories of the layers below; None for the lowest layer, whose whiteouts
            are carried out.
        leave_out: names in the root that are no files of the image.
        prioritized: paths that are wanted first, in this order.
        threads: that compress; 0 for one for each processor.
        max_entries: members of the archive at most.
        max_bytes: of its files at most, with their holes.
        advance: told, while the blob is written, how many bytes of files are done, and of how many.

    Raises:
        FormatError: the archive is damaged, or asks for what cannot be.
        ResourceExhausted: a limit is exceeded, or the disk is full.
    """
    with tempfile.TemporaryFile(dir=temporary) as spool:
        tree = _read(tar, spool, temporary, lower, max_entries, max_bytes)
        drop_names(tree.root, leave_out)
        files = Files(tree.root, prioritized)
        with ChunkWriter(write, pool, options, threads=threads) as writing:
            _add_files(writing, spool, files.order, options.chunk_size, advance)
            writing.finish()
            copies = with_chunks(files, writing.digests, pool, options.chunk_size)
            first = [copies[inode] for inode in files.order[: files.prioritized]]
            blob = _finish(writing, options, first)
        if blob is not None:
            pool.blobs.append(blob)
    root = copy_tree(tree.root, copies)
    return WrittenLayer(
        root,
        opaque_of(copies),
        blob,
        Digest("sha256:" + writing.blob_digest),
        len(writing.digests),
        tuple(first),
        tuple(files.missing),
        tree.warnings,
    )


def _read(
    tar: Iterable[bytes],
    spool: BinaryIO,
    temporary: Path,
    lower: Implied | None,
    max_entries: int,
    max_bytes: int,
) -> TarTree:
    """Return the tree; what its files have is in the spool afterwards."""
    data = DataArea(spool, 0)
    stream = ChunkStream(tar)
    with spooling("the layer", temporary):
        tree = tree_from_tar(
            stream,
            data,
            max_entries=max_entries,
            max_bytes=max_bytes,
            implied=lower,
            whiteouts=lower is not None,
        )
        stream.drain()
        # What is left of the last block may be a hole that nothing was written behind.
        spool.truncate(data.block * BLOCK)
        spool.flush()
    return tree


def _add_files(
    writing: ChunkWriter,
    spool: BinaryIO,
    files: Sequence[TarInode],
    step: int,
    advance: Callable[[int, int], object] | None,
) -> None:
    total = sum(inode.size for inode in files)
    done = 0
    for inode in files:
        for data in _chunks(spool, inode, step):
            writing.add(data)
            done += len(data)
            if advance is not None:
                advance(done, total)


def _chunks(spool: BinaryIO, inode: TarInode, step: int) -> Iterator[bytes]:
    """Yield a file's chunks, holes as zeros."""
    fd = spool.fileno()
    chunk = bytearray()
    for length, device, offset in inode.extents:
        done = 0
        while done < length:
            size = min(step - len(chunk), length - done)
            data = bytes(size) if device == HOLE else os.pread(fd, size, offset + done)
            assert data, "the spool has what was read from the archive"
            done += len(data)
            if len(data) == step:
                yield data
                continue
            chunk += data
            if len(chunk) == step:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)


def _finish(writing: ChunkWriter, options: RafsOptions, first: Sequence[Inode]) -> Blob | None:
    """Write what follows the chunks; return the blob, if there is one."""
    if not writing.written:
        return None
    number = writing.written[0].blob
    ends = [
        found.chunk.compressed_offset + found.chunk.compressed_size
        for inode in first
        for found in inode.chunks
        if found.chunk.blob == number
    ]
    blob = Blob(
        "",
        len(writing.written),
        options.compressor,
        options.digester,
        uncompressed_size=writing.size,
        readahead=(0, min(max(ends, default=0), 0xFFFFFFFF)),
    )
    if options.version == 6:
        digest = bytes.fromhex(writing.blob_digest)
        end = tail(writing.written, data_size=writing.offset, data_digest=digest, size=writing.size)
        writing.put(end.data)
        blob = blob._replace(
            features=FEATURES, meta=end.meta, toc_size=end.toc_size, toc_digest=end.toc_digest
        )
    return blob._replace(id=writing.blob_digest, compressed_size=writing.offset)
