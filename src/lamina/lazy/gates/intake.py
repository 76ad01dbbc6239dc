"""The thread that takes a descriptor's requests into slots, and those that answer slow ones."""

from __future__ import annotations

import errno
import logging
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from lamina.lazy.slots import Slots

log = logging.getLogger(__name__)

SLOW_THREADS = 32
"""Fills that are waited for at a time; they mostly wait for the network."""
_FULL_SECONDS = 0.005

Handler = Callable[[int, memoryview], None]


class Intake:
    """Serves one descriptor in threads of its own, as long as the process lives.

    Args:
        fd: a non-blocking descriptor; stays the caller's.
        slots: its slots.
        handle: called with each request by the taking thread, so that it must not wait; it
            answers and clears the slot, or hands both to `later`.
        name: of the threads.
        begin: called first in each thread.

    Attributes:
        is_over: there will never be a request again.
    """

    def __init__(
        self,
        fd: int,
        slots: Slots,
        handle: Handler,
        name: str,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self.is_over = False
        self._fd = fd
        self._slots = slots
        self._handle = handle
        self._begin = begin
        prefix = f"{name}-fill"
        self._pool = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix=prefix, initializer=begin)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait up to so many seconds until there will never be a request again; tell if so."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return self.is_over

    def later(self, work: Callable[..., None], *arguments: object) -> None:
        """Have another thread do what may wait."""
        self._pool.submit(_logged, work, *arguments)

    def _run(self) -> None:
        if self._begin is not None:
            self._begin()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            # A full table is a matter of many slow fills: looking again is cheap beside them.
            if self._slots.is_full:
                time.sleep(_FULL_SECONDS)
                continue
            poll.poll()
            if not self._take_all():
                self.is_over = True
                return

    def _take_all(self) -> bool:
        """Take what is there; False when there will never be anything again."""
        while not self._slots.is_full:
            try:
                taken = self._slots.take(self._fd)
            except OSError as error:
                if error.errno != errno.ENODEV:  # FUSE: not mounted any more
                    log.exception("cannot take requests of the kernel")
                return False
            if taken is None:
                return True
            _logged(self._handle, *taken)
        return True


def _logged(work: Callable[..., None], *arguments: object) -> None:
    """Do it; a fault in one request must not end the thread that serves all others."""
    try:
        work(*arguments)
    except Exception:
        log.exception("cannot answer a request of the kernel")
