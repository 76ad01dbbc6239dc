"""A blob on its way from a registry into the content store, and the job that reads along."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import Cancelled
from lamina.images.manifest import Descriptor, content_ref
from lamina.images.progress import Event, Progress, Stage, StageClock

if TYPE_CHECKING:
    from lamina.images.ingest import Writer
    from lamina.layer.process import LayerJob

EVENT_SECONDS = 0.05
"""Shortest time between two events of one download."""


def event(descriptor: Descriptor, stage: Stage, offset: int = 0) -> Event:
    """Return news of that content."""
    return Event(content_ref(descriptor), descriptor.digest, stage, offset, descriptor.size)


class Download:
    """A blob that is in the store or on its way there, and at most one job that reads along."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self._changed = threading.Condition()
        self._path: Path | None = None
        self._available = 0
        self._job: LayerJob | None = None
        self._error: BaseException | None = None
        self._done = False

    @contextmanager
    def feeding(self, start: Callable[[Path, int], LayerJob]) -> Iterator[LayerJob]:
        """Start a job as soon as there is a file, and tell it of every further byte.

        Args:
            start: gets a path of the file, and the bytes in it by now. The path leads through a
                descriptor that is open during the `with` block, so it stays good when the
                complete blob is renamed, or removed.

        Raises:
            LaminaError: the download failed before it began.
        """
        with ExitStack() as stack:
            with self._changed:
                self._changed.wait_for(lambda: self._path is not None or self._error is not None)
                self.check()
                fd = os.open(self._path or "", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                self._job = start(Path(f"/proc/{os.getpid()}/fd/{fd}"), self._available)
            yield self._job

    def wait(self) -> None:
        """Wait for the end of the download.

        Raises:
            LaminaError: it failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._done or self._error is not None)
        self.check()

    def give_up(self) -> None:
        """End all waiting for it: the thread that is to bring it may wait for a silent host."""
        with self._changed:
            if not self._done and self._error is None:
                self._error = Cancelled("download", self.descriptor.digest)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error of the download if it has failed already."""
        if self._error is not None:
            raise self._error

    # For the thread that downloads

    def begin(self, path: Path, available: int) -> None:
        """There is a file with so many bytes."""
        with self._changed:
            self._path, self._available = path, available
            self._changed.notify_all()

    def advance(self, available: int) -> None:
        """There are so many bytes by now."""
        with self._changed:
            self._available = available
            if self._job is not None:
                self._job.advance(available)

    def finish(self, publish: Callable[[], Path]) -> None:
        """Complete the blob: `publish` moves its file, and no job may be started meanwhile."""
        with self._changed:
            self._path = publish()
            self._available = self.descriptor.size
            self._done = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """The download is over, without success."""
        with self._changed:
            self._error = error
            if self._job is not None:
                self._job.cancel()
            self._changed.notify_all()


class BlobSink:
    """Where a registry client writes a blob: the ingest, and whoever wants to know."""

    def __init__(
        self, writer: Writer, download: Download, progress: Progress, clock: StageClock
    ) -> None:
        self._writer = writer
        self._download = download
        self._progress = progress
        self._clock = clock
        self._next_event = 0.0

    @property
    def offset(self) -> int:
        """Bytes that are there."""
        return self._writer.offset

    def write(self, data: bytes | memoryview) -> None:
        """Append, pass on, and report now and then."""
        self._writer.write(data)
        self._download.advance(self._writer.offset)
        self._clock.received(len(data))
        now = time.monotonic()
        if now >= self._next_event:
            self._next_event = now + EVENT_SECONDS
            descriptor = self._download.descriptor
            self._progress.update(event(descriptor, Stage.DOWNLOADING, self._writer.offset))
