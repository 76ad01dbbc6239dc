"""Threads for calls that may wait: few while calls are short, many when they are not.

Handlers spend most of a short call inside the interpreter, where only one thread gets on at a time;
with a dozen of them, time goes into passing the turn around. But a call must not wait for others
that take long. So there are few threads as long as jobs are taken up, and twice as many as soon as
one has been waiting for a while without that; those beyond the few end when there is nothing to do.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Job = TypeVar("Job")

_FEW = 4
_PATIENCE = 0.002
"""Seconds without a job being taken up, while some wait, after which there are more threads."""


class Threads(Generic[Job]):
    """Runs jobs; `submit` and `stop` are for the event loop.

    Args:
        run: does a job, on a thread; never raises.
        most: threads there may be.
    """

    def __init__(self, run: Callable[[Job], None], most: int) -> None:
        self._run = run
        self._most = most
        self._few = min(_FEW, most)
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._taken = 0
        self._taken_before = 0
        self._is_watched = False
        self._is_stopped = False

    def submit(self, job: Job) -> None:
        """Run a job soon."""
        self._jobs.put(job)
        if self._count < self._few:
            self._start(1)
        elif not self._is_watched:
            self._watch()

    def stop(self) -> None:
        """End the threads, each when it has done its job."""
        with self._lock:
            self._is_stopped = True
            for _ in range(self._count):
                self._jobs.put(None)

    def _watch(self) -> None:
        self._is_watched = True
        self._taken_before = self._taken
        self._loop.call_later(_PATIENCE, self._look)

    def _look(self) -> None:
        """Start more threads if jobs wait and none has been taken up."""
        self._is_watched = False
        if self._jobs.empty() or self._count >= self._most or self._is_stopped:
            return
        if self._taken == self._taken_before:
            self._start(min(self._count, self._most - self._count))
        self._watch()

    def _start(self, count: int) -> None:
        with self._lock:
            self._count += count
        for _ in range(count):
            threading.Thread(target=self._work, name="grpc-call", daemon=True).start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._taken += 1
            self._run(job)
            del job  # a waiting thread keeps no request in memory

    def _next(self) -> Job | None:
        """Return the next job; None to end."""
        try:
            return self._jobs.get_nowait()
        except Empty:
            pass
        with self._lock:
            if self._count > self._few and not self._is_stopped:
                self._count -= 1
                return None
        return self._jobs.get()
