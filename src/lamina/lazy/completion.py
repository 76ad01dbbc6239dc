"""Fetching what nobody waits for, while nobody waits for anything else."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from lamina.core.cancel import check_cancelled
from lamina.lazy.fills import Fill, Fills
from lamina.lazy.policy import FillPolicy

_POLL_SECONDS = 0.2
"""How often one who waits looks whether it was cancelled."""


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

    def run(self, stretches: Iterable[range], wait: Callable[[], None] | None = None) -> None:
        """Fetch the missing units of all stretches, in their order.

        Args:
            stretches: of units.
            wait: called before each request.

        Raises:
            as `Fills.wait`; Cancelled; what `wait` raises.
        """
        pending: deque[Fill] = deque()
        for stretch in stretches:
            number = stretch.start
            while number < stretch.stop:
                check_cancelled()
                if wait is not None:
                    wait()
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
