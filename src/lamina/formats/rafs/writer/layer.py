"""A layer of an image on its way: its tree, and its files' data as a blob."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lamina.core.digest import Digest
from lamina.errors import ResourceExhausted
from lamina.formats.erofs.data import DataArea
from lamina.formats.erofs.tar import OPAQUE_XATTR, Implied, TarTree, tree_from_tar
from lamina.formats.erofs.tree import BLOCK, HOLE
from lamina.formats.erofs.tree import Inode as TarInode
from lamina.formats.rafs.model import Blob, FileChunk, Inode
from lamina.formats.rafs.tree import is_steering
from lamina.formats.rafs.writer.chunks import ChunkPool, ChunkWriter, Write
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tail import FEATURES, tail
from lamina.formats.stream import ChunkStream
from lamina.formats.tar.layer import clean

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WrittenLayer(NamedTuple):
    """What `write_layer` returns.

    Attributes:
        root: the tree, whiteouts as character devices 0.
        opaque: directories that hide what lower layers have there.
        blob: what was written; None where no chunk was new.
        digest: of the blob, whose `size` in the registry is `Blob.compressed_size`.
        chunks: of all files, those that are there several times each time.
        prioritized: files that come first in the blob.
        missing: paths to be prioritised that are no file of the layer.
        warnings: what was left out, as sentences; the first few only.
    """

    root: Inode
    opaque: frozenset[Inode]
    blob: Blob | None
    digest: Digest
    chunks: int
    prioritized: tuple[Inode, ...]
    missing: tuple[bytes, ...]
    warnings: tuple[str, ...]


def write_layer(
    tar: Iterable[bytes],
    write: Write,
    *,
    temporary: Path,
    pool: ChunkPool,
    options: RafsOptions,
    lower: Implied | None = None,
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
        files = _Files(tree.root, prioritized)
        with ChunkWriter(write, pool, options, threads=threads) as writing:
            _add_files(writing, spool, files.order, options.chunk_size, advance)
            writing.finish()
            copies = _with_chunks(files, writing, pool, options)
            first = [copies[inode] for inode in files.order[: files.prioritized]]
            blob = _finish(writing, options, first)
        if blob is not None:
            pool.blobs.append(blob)
    root = _copy(tree.root, copies)
    return WrittenLayer(
        root,
        frozenset(copies[inode] for inode in copies if OPAQUE_XATTR in inode.xattrs),
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
    try:
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
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceExhausted(
            "write the layer to a temporary file below",
            temporary,
            hint=f"{error.strerror}: free some space on its disk",
        ) from error
    return tree


class _Files:
    """The regular files of a tree that have data, in the order in which the blob gets them.

    Attributes:
        order: each once.
        prioritized: how many of them are wanted first.
        missing: paths that are no file.
    """

    def __init__(self, root: TarInode, prioritized: Sequence[bytes]) -> None:
        first: dict[TarInode, None] = {}
        self.missing: list[bytes] = []
        for path in prioritized:
            inode = _find(root, clean(path))
            if inode is None or not inode.is_regular:
                self.missing.append(path)
            elif inode.size:
                first[inode] = None
        rest = {inode: None for inode in _walk(root) if inode.is_regular and inode.size}
        behind = sorted((inode for inode in rest if inode not in first), key=_place)
        self.order = [*first, *behind]
        self.prioritized = len(first)


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


def _find(root: TarInode, path: bytes) -> TarInode | None:
    inode: TarInode | None = root
    for part in filter(None, path.split(b"/")):
        inode = inode.children.get(part) if inode else None
    return inode


def _walk(root: TarInode) -> Iterator[TarInode]:
    """Yield each inode, one with several names as often, in an order that only the tree decides."""
    waiting = [root]
    while waiting:
        inode = waiting.pop()
        yield inode
        waiting += [inode.children[name] for name in sorted(inode.children, reverse=True)]


def _place(inode: TarInode) -> int:
    """Return where the tar has the first byte of a file; files of holes alone come last."""
    return next((each.offset for each in inode.extents if each.device != HOLE), 1 << 63)


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


def _with_chunks(
    files: _Files, writing: ChunkWriter, pool: ChunkPool, options: RafsOptions
) -> dict[TarInode, Inode]:
    """Return copies of the files with their chunks."""
    copies: dict[TarInode, Inode] = {}
    step = options.chunk_size
    digests = iter(writing.digests)
    for inode in files.order:
        copy = copies[inode] = _inode(inode)
        copy.chunks = tuple(
            FileChunk(offset, pool.chunks[next(digests)]) for offset in range(0, inode.size, step)
        )
    return copies


def _copy(root: TarInode, copies: dict[TarInode, Inode]) -> Inode:
    """Return the copy of a tree, of which `copies` has a part before and all of it afterwards."""
    found = list(dict.fromkeys(_walk(root)))
    for inode in found:
        if inode not in copies:
            copies[inode] = _inode(inode)
    for inode in found:
        children = copies[inode].children
        for name, child in inode.children.items():
            children[name] = copies[child]
    return copies[root]


def _inode(inode: TarInode) -> Inode:
    """Return a copy without chunks and children; what steers an overlay is left out."""
    xattrs: Mapping[bytes, bytes] = {
        name: value for name, value in inode.xattrs.items() if not is_steering(name)
    }
    return Inode(
        0,
        inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        mtime=inode.mtime,
        rdev=inode.rdev,
        size=inode.size,
        target=inode.target,
        xattrs=xattrs,
    )


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


def is_whiteout(inode: Inode) -> bool:
    """Tell whether this is no file, but the mark that a lower layer's file is gone."""
    return stat.S_ISCHR(inode.mode) and not inode.rdev
