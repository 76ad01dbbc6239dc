"""What was waited for in vain just now: whoever asks again at once is told at once.

The kernel reads what a program reads in several parts, one after the other, and asks again page by
page for those that it did not get: a reader would wait several times for one source that is silent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from lamina.errors import DeadlineExceeded, Unavailable

LONGEST = 3.0
"""Seconds: the kernel asks again within milliseconds, and later readers are to have their time."""
SHORTEST_WAIT = 0.5
"""Seconds: who has waited less may as well ask the source again."""

Vain = DeadlineExceeded | Unavailable


class Refusals:
    """Of one cache. Safe to use from any thread.

    A refusal lasts as long as the wait did, and at most `LONGEST`; it does not prolong itself. It
    is for the units that were waited for, and for all when the source gave nothing meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gave = 0.0
        self._refused: dict[int | None, tuple[float, Vain]] = {}
        """Until when, and with which error, by unit; None is all of them."""

    def check(self, units: range) -> None:
        """Return unless one of these units is refused.

        Raises:
            DeadlineExceeded, Unavailable: as whoever waited has got.
        """
        if not self._refused:
            return
        now = time.monotonic()
        with self._lock:
            self._refused = {one: found for one, found in self._refused.items() if found[0] > now}
            hit = next((one for one in (None, *units) if one in self._refused), -1)
            found = self._refused.get(hit)
        if found is not None:
            raise _again(found[1])

    def note(self, units: Iterable[int], error: Vain, began: float) -> None:
        """Say that somebody has waited for units, and got this error instead.

        Args:
            units: those that have not come.
            error: that they got.
            began: when the wait did, in `time.monotonic()` seconds.
        """
        now = time.monotonic()
        if now - began < SHORTEST_WAIT:
            return
        until = now + min(now - began, LONGEST)
        with self._lock:
            which = units if self._gave > began else [None]
            self._refused.update(dict.fromkeys(which, (until, error)))

    def clear(self) -> None:
        """Say that the source has given something."""
        with self._lock:
            self._gave = time.monotonic()
            self._refused.clear()


def _again(error: Vain) -> Vain:
    """Return an error of the caller's own: raising one twice mixes its traces."""
    kind = DeadlineExceeded if isinstance(error, DeadlineExceeded) else Unavailable
    again = kind(error.what, error.subject, hint=error.hint)
    again.__cause__ = error
    return again
