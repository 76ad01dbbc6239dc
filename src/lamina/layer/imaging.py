"""The EROFS image of a layer, written from its tar stream while that arrives.

What the archive means is the same as where it is extracted: see `lamina.formats.erofs.tar`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from lamina.core.digest import Digest
from lamina.errors import ResourceExhausted
from lamina.formats.erofs.tar import image_from_tar
from lamina.formats.erofs.tree import Inode
from lamina.formats.stream import ChunkStream
from lamina.layer.faults import EXHAUSTED
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.pipeline import HashedChunks
from lamina.layer.target import LayerTarget
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_UUID_SIZE = 16


@contextmanager
def new_image(path: Path) -> Iterator[BinaryIO]:
    """Make a file, which is removed where the body fails; it is not synced.

    Raises:
        ResourceExhausted: the disk is full, or a quota used up.
        FileExistsError: it exists.
    """
    out = path.open("xb")
    try:
        with out:  # what is buffered is written at its end
            yield out
    except BaseException as error:
        path.unlink(missing_ok=True)  # on a full disk, others wait for what it takes
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            hint = EXHAUSTED[error.errno]
            raise ResourceExhausted("write the image of a layer", path, hint=hint) from error
        raise


def write_layer_image(
    chunks: Iterable[bytes],
    target: LayerTarget,
    out: BinaryIO,
    *,
    limits: LayerLimits,
    ahead: threading.Event | None = None,
    diff_id: Digest | None = None,
) -> Applied:
    """Write the image of the uncompressed tar stream in `chunks` and return what that was.

    The whole stream is read and hashed, bytes after the archive's end included. The image's
    superblock comes last. Its UUID is never zero: that is how it differs from an image of what was
    written to a directory.

    Args:
        chunks: the stream, in pieces of any size.
        target: what to make the image for.
        out: an empty file.
        limits: bounds.
        ahead: see `HashedChunks`.
        diff_id: what the stream should be; begins the UUID. The caller compares it.

    Raises:
        FormatError: the archive is damaged, cut off, or asks for what cannot be.
        ResourceExhausted: a limit is exceeded.
        InvalidArgument: an inode has more attributes than an image can hold.
        OSError: from reading below `target`, or writing.
    """
    with ExitStack() as stack:
        hashed = HashedChunks(chunks, max_bytes=limits.max_bytes, ahead=ahead)
        stream = ChunkStream(stack.enter_context(hashed))
        lower = _Lower(stack, target.parents)
        image = image_from_tar(
            stream,
            out,
            max_entries=limits.max_entries,
            max_bytes=limits.max_bytes,
            uuid=_uuid(diff_id),
            implied=lower.directory,
            root=_root(target.root),
            whiteouts=target.overlay_whiteouts,
        )
        stream.drain()
        return Applied(hashed.digest, hashed.size, image.entries, image.warnings, lower.is_missing)


def _uuid(diff_id: Digest | None) -> bytes:
    known = bytes.fromhex(diff_id.partition(":")[2])[:_UUID_SIZE] if diff_id else b""
    return known if any(known) else os.urandom(_UUID_SIZE)


def _root(directory: Path) -> Inode:
    """Return a root that belongs to whom that directory does."""
    status = directory.stat()
    mode = stat.S_IFDIR | stat.S_IMODE(status.st_mode)
    return Inode(mode, status.st_uid, status.st_gid, status.st_mtime_ns)


class _Lower:
    """Directories of the layers below, nearest first; `is_missing` when none was there to ask."""

    def __init__(self, stack: ExitStack, layers: Sequence[Path]) -> None:
        self.is_missing = False
        self._layers = []
        for path in layers:
            fd = os.open(path, _DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            self._layers.append(fd)

    def directory(self, path: bytes) -> Inode | None:
        """Return a directory as the first layer has it that has anything there, without children.

        None where none has it, or it is something else.
        """
        self.is_missing |= not self._layers
        for layer in self._layers:
            try:
                fd = openat2(path, _DIRECTORY, dir_fd=layer, resolve=_BENEATH)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return None
                raise
            try:
                return _described(fd)
            finally:
                os.close(fd)
        return None


_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def _described(fd: int) -> Inode:
    status = os.fstat(fd)
    xattrs = {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd)}
    return Inode(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs=xattrs)
