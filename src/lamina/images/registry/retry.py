"""How often to try again, and how long to wait before it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from lamina.core.cancel import check_cancelled, current_deadline
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.failure import Failure

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def _wait(seconds: float, cancel: Cancel) -> None:
    cancel.wait(seconds)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter; times in seconds.

    Attributes:
        attempts: tries of one request, or of a download without progress in between.
        mirror_attempts: the same where another host is left to be asked.
        first_delay: longest wait after the first failure; it doubles with each further one.
        longest_delay: bound of every wait, also of one that a registry's Retry-After asks for.
        read_timeout: longest silence of a connection.
        progress_window: a body must bring `progress_bytes` in each window of this length.
        progress_bytes: less is a stall; an attempt that brought as much counts as progress.
        wait: how to wait.
    """

    attempts: int = 6
    mirror_attempts: int = 2
    first_delay: float = 1.0
    longest_delay: float = 60.0
    read_timeout: float = 30.0
    progress_window: float = 30.0
    progress_bytes: int = 64 << 10
    wait: Callable[[float, Cancel], None] = _wait

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Return how long to wait after the given number of failures in a row (from 1)."""
        if retry_after is not None:
            return min(retry_after, self.longest_delay)
        ceiling = min(self.first_delay * 2.0 ** (failures - 1), self.longest_delay)
        return random.uniform(ceiling / 4, ceiling)


def retrying(
    attempt: Callable[[], _T],
    policy: RetryPolicy,
    attempts: int,
    cancel: Cancel,
    what: str,
    progress: Callable[[], int] = lambda: 0,
) -> _T:
    """Return what `attempt` returns; give up after `attempts` failures in a row.

    It gives up, too, where the deadline of the context (`core.cancel`) is before the next try.
    `progress` tells how many bytes are there by now: an attempt that brought enough ends a row.

    Raises:
        Failure: the last one, or the first that trying again cannot help.
        Cancelled: during a wait; nobody waits any more.
    """
    failures = 0
    while True:
        before = progress()
        try:
            return attempt()
        except Failure as failure:
            if not failure.transient:
                raise
            failures = 1 if progress() - before >= policy.progress_bytes else failures + 1
            delay = policy.delay(failures, failure.retry_after)
            if failures >= attempts or _is_too_late(delay):
                tries = "1 try" if failures == 1 else f"{failures} tries"
                failure.error.hint = failure.error.hint or f"gave up after {tries}"
                raise
            log.info("trying again in %.1f s: %s", delay, failure.error)
        policy.wait(delay, cancel)
        cancel.check(what, "")
        check_cancelled()


def _is_too_late(delay: float) -> bool:
    deadline = current_deadline()
    return deadline is not None and time.monotonic() + delay >= deadline


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), never negative.

    None stands for an absent or unreadable header.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
