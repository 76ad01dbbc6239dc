"""Giving up from another thread, even while a read waits for the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lamina.errors import Cancelled


class Cancel:
    """Told once to stop, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._interrupts: dict[int, Callable[[], None]] = {}

    def set(self) -> None:
        """Stop all work that this object was given to; waiting reads end at once."""
        self._event.set()
        for interrupt in list(self._interrupts.values()):
            interrupt()

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def check(self, what: str, subject: object) -> None:
        """Raise Cancelled if told to stop; the arguments say what was being done."""
        if self._event.is_set():
            raise Cancelled(what, subject)

    def wait(self, seconds: float) -> None:
        """Sleep, but not longer than until `set`."""
        self._event.wait(seconds)

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Have `set` call `interrupt` while the body runs (and at once if it was called before)."""
        key = id(interrupt)
        self._interrupts[key] = interrupt
        try:
            if self._event.is_set():
                interrupt()
            yield
        finally:
            del self._interrupts[key]
