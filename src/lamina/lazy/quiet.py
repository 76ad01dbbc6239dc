"""Whether readers wait for bytes, so that what nobody waits for is fetched afterwards."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.lazy.policy import FillPolicy

_POLL_SECONDS = 0.2
"""How often one who waits looks whether there is a reason to stop."""


class Quiet:
    """Since when no reader waits; for all caches of a process, which share one network.

    Safe to use from any thread.
    """

    def __init__(self, silence_seconds: float) -> None:
        self._silence = silence_seconds
        self._changed = threading.Condition()
        self._readers = 0
        self._since = time.monotonic() - silence_seconds

    @contextmanager
    def disturbed(self) -> Iterator[None]:
        """Count a reader that waits inside the block."""
        with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
            self.disturb()

    def disturb(self) -> None:
        """Begin the silence anew: readers are to be expected."""
        with self._changed:
            self._since = time.monotonic()
            self._changed.notify_all()

    def wait(self, check: Callable[[], None]) -> None:
        """Return once no reader has waited for the time of silence.

        Args:
            check: called before it returns, and now and then before; what it raises ends the wait.
        """
        with self._changed:
            while left := self._left():
                check()
                self._changed.wait(min(left, _POLL_SECONDS))
        check()

    def _left(self) -> float:
        """Return how many seconds of silence are left to wait for."""
        if self._readers:
            return _POLL_SECONDS
        return max(0.0, self._since + self._silence - time.monotonic())


@functools.cache
def quiet_of_process() -> Quiet:
    """Return the one that all caches of this process share."""
    return Quiet(FillPolicy().silence_seconds)
