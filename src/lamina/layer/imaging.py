"""The EROFS image of a layer, written from its tar stream while that arrives.

What the archive means is the same as where it is extracted: see `lamina.formats.erofs.tar`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
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
from lamina.layer.lower import LowerLayers
from lamina.layer.pipeline import HashedChunks
from lamina.layer.target import LayerTarget

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
        lower = LowerLayers(stack, target.parents)
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
