"""Fetching what nobody waits for, while nobody waits for anything else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lamina.core.cancel import check_cancelled
from lamina.errors import Cancelled
from lamina.lazy.fills import Fill, Fills
from lamina.lazy.policy import FillPolicy

_POLL_SECONDS = 0.2
"""How often one who waits looks whether it was cancelled."""


class Quiet:
    """Whether readers wait for bytes, and since when none does."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence = silence_seconds
        self._changed = threading.Condition()
        self._readers = 0
        self._since = time.monotonic() - silence_seconds
        self._closed = False

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
                self._since = time.monotonic()
                self._changed.notify_all()

    def wait(self) -> None:
        """Return once no reader has waited for the time of silence.

        Raises:
            Cancelled: `close` was called; or see `core.cancel`.
        """
        with self._changed:
            while left := self._left():
                self._check()
                self._changed.wait(min(left, _POLL_SECONDS))
            self._check()

    def close(self) -> None:
        """End every `wait`, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _left(self) -> float:
        """Return how many seconds of silence are left to wait for."""
        if self._readers:
            return _POLL_SECONDS
        return max(0.0, self._since + self._silence - time.monotonic())

    def _check(self) -> None:
        check_cancelled()
        if self._closed:
            raise Cancelled("complete a layer")


class Submit(Protocol):
    """Has a request carried out by another thread."""

    def __call__(self, request: Fill, *, urgent: bool) -> None:
        """Return at once."""
        ...


class Completion:
    """Goes through units and has the missing ones fetched, a few requests at a time."""

    def __init__(self, fills: Fills, submit: Submit, policy: FillPolicy) -> None:
        self._fills = fills
        self._submit = submit
        self._policy = policy

    def run(self, stretches: Iterable[range], quiet: Quiet | None) -> None:
        """Fetch the missing units of all stretches, in their order.

        Args:
            stretches: of units.
            quiet: what to wait for before each request, if for anything.

        Raises:
            as `Fills.wait`; Cancelled.
        """
        pending: deque[Fill] = deque()
        for stretch in stretches:
            number = stretch.start
            while number < stretch.stop:
                check_cancelled()
                if quiet is not None:
                    quiet.wait()
                found = self._fills.next(number, stretch.stop, self._policy.background_bytes)
                if found is None:
                    break
                number = found.fill.units.stop
                pending.append(found.fill)
                if found.is_new:
                    self._submit(found.fill, urgent=False)
                while len(pending) >= self._policy.background_requests:
                    self._wait(pending.popleft())
        for request in pending:
            self._wait(request)

    def _wait(self, request: Fill) -> None:
        """Wait until nothing of a request is left: it has a deadline of its own once it is begun.

        Until then it may stand behind those of readers for any time.
        """
        while not self._fills.ended(request, request.units, _POLL_SECONDS):
            check_cancelled()
        self._fills.wait(request, request.units, time.monotonic())
