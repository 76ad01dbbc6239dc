"""Telling work that nobody waits for it any more.

Whoever starts work for somebody else makes a `CancelToken` and runs the work inside `cancellable`.
Long loops call `check_cancelled()`, which raises once the token is cancelled or its deadline has
passed; where nobody has given a token, it does nothing. What cleans up after such an error runs
inside `shielded`, or it would be stopped by the same token.

A token belongs to a context (`contextvars`): a thread that the work starts has none of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from lamina.errors import Cancelled, DeadlineExceeded


class CancelToken:
    """Whether somebody still waits; may be cancelled from any thread.

    Args:
        deadline: `time.monotonic()` seconds at which nobody waits any more; None for no limit.
        outer: a token without which nobody waits either; its deadline holds, too.
    """

    __slots__ = ("_cancelled", "_outer", "deadline")

    def __init__(self, deadline: float | None = None, outer: CancelToken | None = None) -> None:
        limits: list[float | None] = [deadline, None if outer is None else outer.deadline]
        known = [limit for limit in limits if limit is not None]
        self.deadline: float | None = min(known, default=None)
        self._outer = outer
        self._cancelled = False

    def cancel(self) -> None:
        """Say that nobody waits; calling it again does nothing."""
        self._cancelled = True

    @property
    def is_awaited(self) -> bool:
        """Whether somebody still waits."""
        if self._outer is not None and not self._outer.is_awaited:
            return False
        return not self._cancelled and (self.deadline is None or time.monotonic() < self.deadline)

    def check(self) -> None:
        """Return if somebody still waits.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Cancelled: `cancel` was called before that.
        """
        if self.is_awaited:
            return
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("go on")
        raise Cancelled("go on")


_current: ContextVar[CancelToken | None] = ContextVar("lamina_cancel_token", default=None)


@contextmanager
def cancellable(token: CancelToken | None) -> Iterator[None]:
    """Have `check_cancelled` ask this token inside the block."""
    before = _current.set(token)
    try:
        yield
    finally:
        _current.reset(before)


def shielded() -> AbstractContextManager[None]:
    """Have `check_cancelled` do nothing inside the block."""
    return cancellable(None)


def within(seconds: float) -> AbstractContextManager[None]:
    """Have nobody wait for what the block does after so many seconds from now.

    Where somebody stops waiting for what is around the block, that holds in it, too.
    """
    return cancellable(CancelToken(time.monotonic() + seconds, _current.get()))


def current_deadline() -> float | None:
    """Return until when somebody waits, in `time.monotonic()` seconds; None for no limit."""
    token = _current.get()
    return None if token is None else token.deadline


def is_cancelled() -> bool:
    """Tell whether `check_cancelled` would raise."""
    token = _current.get()
    return token is not None and not token.is_awaited


def check_cancelled() -> None:
    """Return if somebody still waits for what this context does, or nobody has said who.

    Raises:
        Cancelled: nobody does.
        DeadlineExceeded: they did for long enough.
    """
    token = _current.get()
    if token is not None:
        token.check()
