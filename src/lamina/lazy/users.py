"""Who uses something that can be closed: it is closed after the last of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lamina.errors import FailedPrecondition


class Users:
    """Counts them. Safe to use from any thread; a user may be one again inside.

    Args:
        use: what they do, for the error that those get who come too late.
        subject: what they use.
    """

    def __init__(self, use: str, subject: object) -> None:
        self._use = use
        self._subject = subject
        self._changed = threading.Condition()
        self._count = 0
        self.are_refused = False
        """Whether `refuse` was called."""

    @contextmanager
    def one(self) -> Iterator[None]:
        """Be counted inside of the block.

        Raises:
            FailedPrecondition: it is closed.
        """
        with self._changed:
            self.check()
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Be no user, but get the error of one who comes too late.

        Raises:
            FailedPrecondition: it is closed.
        """
        if self.are_refused:
            raise FailedPrecondition(self._use, self._subject, hint="it is closed")

    def refuse(self) -> None:
        """Let nobody begin any more."""
        with self._changed:
            self.are_refused = True

    def gone(self, seconds: float) -> bool:
        """Wait up to so many seconds until nobody is left; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, max(0.0, seconds))
