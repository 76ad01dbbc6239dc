"""Threads that fetch, so that whoever waits can stop waiting at its own deadline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from lamina.errors import FailedPrecondition

Job = Callable[[], None]


class Workers:
    """A few threads; caches may share one of these.

    Urgent jobs come first, and the others take no more than half of the threads. The threads are
    started when there is work for them and do not keep the process from ending.
    """

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._changed = threading.Condition()
        self._urgent: deque[Job] = deque()
        self._later: deque[Job] = deque()
        self._running_later = 0
        self._idle = 0
        self._started = 0
        self._closed = False

    def submit(self, job: Job, *, urgent: bool) -> None:
        """Have a thread call `job`, which raises nothing.

        Raises:
            FailedPrecondition: they are closed.
        """
        with self._changed:
            if self._closed:
                raise FailedPrecondition("fetch", hint="its threads are closed")
            (self._urgent if urgent else self._later).append(job)
            waiting = len(self._urgent) + len(self._later)
            if self._idle < waiting and self._started < self._most:
                self._start()
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs; the threads end once they have done those that are there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _start(self) -> None:
        name = f"lazy-fetch-{self._started}"
        self._started += 1
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            job, urgent = found
            job()
            if not urgent:
                with self._changed:
                    self._running_later -= 1
                    self._changed.notify()

    def _next(self) -> tuple[Job, bool] | None:
        """Wait for a job; None when there will be no more for this thread."""
        with self._changed:
            while True:
                if self._urgent:
                    return self._urgent.popleft(), True
                if self._later and self._running_later < max(1, self._most // 2):
                    self._running_later += 1
                    return self._later.popleft(), False
                if self._closed:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
