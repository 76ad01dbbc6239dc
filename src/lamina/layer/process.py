"""Worker processes that apply layers side by side, each while its blob is still arriving."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from lamina.core.digest import Digest
from lamina.errors import Aborted, Cancelled, Internal, LaminaError
from lamina.layer import message
from lamina.layer.blob import is_sniffed
from lamina.layer.limits import Applied, LayerLimits
from lamina.layer.target import LayerTarget

log = logging.getLogger(__name__)

_STEP = 1 << 20
"""Bytes that have to arrive before a worker is told; more often would only wake it up."""


class LayerJob:
    """A layer that is waiting for a worker, being applied, or done. Safe to use from any thread."""

    def __init__(self, job: message.Job, available: int) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._available = available
        self._told = -1
        self._worker: _Worker | None = None
        self._cancelled = False
        self._ahead = False
        self._done = threading.Event()
        self._applied: Applied | None = None
        self._error: LaminaError | None = None

    def advance(self, available: int) -> None:
        """Tell how many bytes of the blob, from its beginning, are in the file by now."""
        with self._lock:
            self._available = max(available, self._available)
            self._tell()

    def cancel(self) -> None:
        """Stop it; `result` raises Cancelled then, unless it is done already."""
        with self._lock:
            self._cancelled = True
            if self._worker is not None:
                self._worker.kill()

    @property
    def is_done(self) -> bool:
        """Whether `result` would not wait."""
        return self._done.is_set()

    def result(self) -> Applied:
        """Wait until it is done and return what the layer was.

        Raises:
            DigestMismatch: the layer has another diff id.
            FormatError, ResourceExhausted, PermissionDenied: as `apply_layer`.
            Aborted: the worker process was killed.
            Cancelled: `cancel` was called, or the workers were closed.
        """
        self._done.wait()
        if self._applied is None:
            raise self._error or AssertionError("a job is done without a result")
        return self._applied

    def _tell(self) -> None:
        """Pass `_available` on to the worker where that is worth it; needs the lock."""
        if self._job.size is None:
            return
        last = self._available >= self._job.size > self._told
        if self._worker is not None and (last or self._available - self._told >= _STEP):
            self._worker.send({"available": self._available})
            self._told = self._available

    def set_ahead(self, ahead: bool) -> None:
        """Let the worker use a second core, or keep it to one."""
        with self._lock:
            if self._worker is not None and ahead != self._ahead:
                self._worker.send({"ahead": ahead})
            self._ahead = ahead

    def run(self, worker: _Worker) -> None:
        """Have the worker apply it; called by the worker's thread."""
        with self._lock:
            if not self._cancelled:
                worker.send({"ahead": self._ahead})
                worker.send(message.encode_job(self._job))
                self._worker = worker
                self._tell()
        answer = None if self._cancelled else worker.receive()
        with self._lock:
            self._worker = None
            self._finish(answer, worker)

    def fail(self, error: LaminaError) -> None:
        """End it without a worker."""
        with self._lock:
            self._error = error
            self._done.set()

    def _finish(self, answer: message.Answer | None, worker: _Worker) -> None:
        if isinstance(answer, Applied):
            self._applied = answer
            for warning in answer.warnings:
                log.warning("unpack layer: %s", warning, extra={"path": str(self._job.blob)})
        elif answer is not None:
            self._error = answer
        elif self._cancelled:
            self._error = Cancelled("unpack layer", self._job.blob.name)
        else:
            self._error = Aborted(
                "unpack layer", self._job.blob.name, hint=f"the worker process {worker.ending()}"
            )
        self._done.set()


class _Worker:
    """One worker process and the socket to it."""

    def __init__(self, held: Sequence[int]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # -P: a directory `lamina` in the current directory is not the package.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "lamina.layer.worker"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    pass_fds=held,
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        self._killed = False
        self._connection = ours
        self._messages = message.receive(ours)

    def send(self, value: object) -> None:
        """Send a value; if the worker is dead, `receive` will tell."""
        try:
            message.send(self._connection, value)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive(self) -> message.Answer | None:
        """Wait for the result or the error of the job; None if the worker died."""
        value = next(self._messages, None)
        return None if value is None else message.decode_answer(value)

    def kill(self) -> None:
        """End the process at once."""
        self._killed = True
        self._process.kill()

    def ending(self) -> str:
        """Wait for the process and tell how it ended."""
        code = self._process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"exited with {code}"

    def is_alive(self) -> bool:
        """Tell whether it can take another job."""
        return not self._killed and self._process.poll() is None

    def close(self) -> None:
        """End the process, which ends with its socket, and reap it."""
        self._connection.close()
        self._process.wait()


class LayerWorkers:
    """Up to `count` worker processes, started when there is work and used again; context manager.

    Leaving it cancels what is not done.
    """

    def __init__(self, count: int, *, held: Sequence[int] = ()) -> None:
        """Start nothing yet.

        Args:
            count: layers to apply at a time.
            held: descriptors that the workers keep open as long as they live, such as a lock
                that tells others that somebody still writes below the targets.
        """
        self._count = count
        self._held = tuple(held)
        self._queue: SimpleQueue[LayerJob | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._jobs: list[LayerJob] = []
        self._running: list[LayerJob] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(
        self,
        blob: Path,
        media_type: str,
        target: LayerTarget,
        *,
        size: int | None,
        available: int,
        diff_id: Digest | None,
        limits: LayerLimits,
    ) -> LayerJob:
        """Begin to apply a layer as soon as a worker is free; never blocks.

        Args:
            blob: file with the layer as distributed; opened when a worker gets to it, and read
                up to what `available` and `LayerJob.advance` say.
            media_type: media type of the blob's descriptor.
            target: where to extract it.
            size: length of the whole blob; None for a pipe, which is read to its end.
            available: bytes that are there now.
            diff_id: what the SHA-256 of the uncompressed stream must be.
            limits: bounds.
        """
        sniff = is_sniffed(media_type)
        job = LayerJob(message.Job(blob, sniff, target, size, diff_id, limits), available)
        with self._lock:
            self._jobs.append(job)
            self._queue.put(job)
            if len(self._threads) < min(self._count, len(self._jobs)):
                thread = threading.Thread(target=self._serve, name="layer-worker", daemon=True)
                self._threads.append(thread)
                thread.start()
        return job

    def close(self) -> None:
        """Cancel what is not done and end the workers."""
        with self._lock:
            threads, self._threads = self._threads, []
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.cancel()
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _serve(self) -> None:
        """Feed one worker process, and start another when it has died."""
        worker: _Worker | None = None
        try:
            while (job := self._queue.get()) is not None:
                if worker is not None and not worker.is_alive():
                    worker.close()
                    worker = None
                try:
                    worker = worker or _Worker(self._held)
                except OSError as error:
                    job.fail(Internal("start a layer worker", sys.executable, hint=str(error)))
                    continue
                self._share_cores(begins=job)
                job.run(worker)
                self._share_cores(ends=job)
        finally:
            if worker is not None:
                worker.close()

    def _share_cores(self, *, begins: LayerJob | None = None, ends: LayerJob | None = None) -> None:
        """Give every running job a second core as long as there are enough for all."""
        with self._lock:
            if begins is not None:
                self._running.append(begins)
            if ends is not None:
                self._running.remove(ends)
            ahead = 2 * len(self._running) <= len(os.sched_getaffinity(0))
            for job in self._running:
                job.set_ahead(ahead)
