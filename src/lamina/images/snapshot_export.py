"""A snapshot as one overlaybd layer: all that it shows, in an ext4 filesystem of its own."""

from __future__ import annotations

import contextvars
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from lamina.core.snapshot import Snapshotter
from lamina.errors import Aborted, LaminaError
from lamina.formats.ext4.layers import Ext4Layers
from lamina.formats.lsmt.blob import write_blob
from lamina.formats.lsmt.layout import About
from lamina.formats.tar import END_OF_ARCHIVE
from lamina.formats.temporary import spooling
from lamina.images.blob_source import FileSource
from lamina.images.conversion_overlaybd import OverlaybdOptions
from lamina.layer.copying import LayerSource
from lamina.layer.diff import ChangeWriter
from lamina.layer.snapshot_diff import mounted_snapshot

_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Exported:
    """A layer that was written.

    Attributes:
        size: bytes of the file.
        data: bytes of the device that it has.
        warnings: what was left out, as sentences.
    """

    size: int
    data: int
    warnings: tuple[str, ...]


def export_overlaybd(
    snapshotter: Snapshotter,
    key: str,
    out: BinaryIO,
    *,
    mounts: Path,
    temporary: Path,
    options: OverlaybdOptions | None = None,
) -> Exported:
    """Write what a snapshot shows, with all below it, as a sealed layer of a device.

    The layer needs no other; equal trees give equal bytes. The snapshot may be of any snapshotter:
    it is mounted read-only meanwhile.

    Args:
        snapshotter: where the snapshot is.
        key: the snapshot.
        out: an empty file that can seek; neither closed nor flushed.
        mounts: directory for temporary mounts.
        temporary: directory for a file without a name, which has all data for a while.
        options: of device and layer.

    Raises:
        NotFound: no such snapshot.
        InvalidArgument: a size is out of range.
        Aborted: something wrote to it meanwhile.
        ResourceExhausted: the device is too small, or the disk is full.
    """
    options = options or OverlaybdOptions()
    options.check()
    size = options.virtual_size
    with tempfile.TemporaryFile(dir=temporary) as spool:
        filesystem = Ext4Layers(size, spool)
        with (
            mounted_snapshot(snapshotter, key, mounts) as root,
            spooling("the filesystem", temporary),
            _piped(partial(_write_tree, root)) as tar,
        ):
            applied = filesystem.apply(tar)
            spool.flush()
        with spooling("the layer", temporary):
            about = About(size)
            written = write_blob(out, applied.extents, [FileSource(spool)], about, options.zfile)
    return Exported(out.tell(), written.data, applied.warnings)


def _write_tree(root: Path, write: Callable[[bytes], None]) -> None:
    """Write a tree as a tar that says all of it, times to the nanosecond."""
    with ExitStack() as stack:
        changes, fd = LayerSource(root).changes(stack)
        writer = ChangeWriter(fd, write, exact=True)
        try:
            for change in changes:
                writer.add(change)
        except (FileNotFoundError, NotADirectoryError) as error:
            hint = f"the tree was changed meanwhile: {error}"
            raise Aborted("export a snapshot", hint=hint) from error
        write(END_OF_ARCHIVE)


@contextmanager
def _piped(make: Callable[[Callable[[bytes], None]], object]) -> Iterator[Iterator[bytes]]:
    """Yield what a function writes in another thread, in pieces; its error is raised here.

    The body has to read all of it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with open(writing, "wb", buffering=_STEP) as pipe:
                make(lambda data: _put(pipe, data))
        except BaseException as error:
            failures.append(error)  # for the thread that reads

    # Whoever cancels the reader cancels this thread, too.
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run,), name="lamina-export"
    )
    thread.start()
    try:
        with open(reading, "rb", buffering=0) as pipe:
            yield iter(partial(pipe.read, _STEP), b"")
    except LaminaError:
        # A tar that was not written to its end is no news where the reason is known.
        thread.join()
        if failures and not isinstance(failures[0], BrokenPipeError):
            raise failures[0] from None
        raise
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _put(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(data)
