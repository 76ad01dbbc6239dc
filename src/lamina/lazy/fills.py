"""Requests under way: each unit is fetched by one of them at a time, and any number wait for it."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from lamina.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    LaminaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lamina.lazy.policy import FillPolicy
from lamina.lazy.table import UnitTable
from lamina.lazy.unit_map import UnitMap

_KINDS: tuple[type[LaminaError], ...] = (
    *(DataLoss, ResourceExhausted, Unavailable, DeadlineExceeded, Unauthenticated),
    *(PermissionDenied, NotFound, Cancelled, FailedPrecondition),
)


class _Waiter:
    """A thread that waits for some units of one request."""

    __slots__ = ("ready", "wanted")

    def __init__(self, wanted: set[int]) -> None:
        self.wanted = wanted
        self.ready = threading.Event()


class Fill:
    """One request for a stretch of units; what changes of it is guarded by `Fills`.

    Attributes:
        units: that it was made for.
        left: those that are neither in the cache nor given up.
        errors: why a unit was given up.
        waiters: who is to be told of units.
    """

    __slots__ = ("errors", "left", "units", "waiters")

    def __init__(self, units: range) -> None:
        self.units = units
        self.left = set(units)
        self.errors: dict[int, LaminaError] = {}
        self.waiters: list[_Waiter] = []


class Found(NamedTuple):
    """The request that has a missing unit.

    Attributes:
        fill: the request.
        number: the unit.
        is_new: nobody carries it out yet: whoever asked has to see to it.
    """

    fill: Fill
    number: int
    is_new: bool


class Fills:
    """The requests of one cache.

    Args:
        subject: what is filled, for errors.
    """

    def __init__(
        self, table: UnitTable, units: UnitMap, policy: FillPolicy, subject: object
    ) -> None:
        self._table = table
        self._map = units
        self._policy = policy
        self._subject = subject
        self._changed = threading.Condition()
        self._busy: dict[int, Fill] = {}
        self._closed = False

    def next(self, start: int, stop: int, most: int) -> Found | None:
        """Return the request for the first unit in [start, stop) that is missing, None if none is.

        A new one starts with this unit and asks for up to `most` bytes, or for one unit.

        Raises:
            FailedPrecondition: the cache is closed.
        """
        with self._changed:
            number = self._map.next_wanted(start, stop)
            if number is None:
                return None
            if (fill := self._busy.get(number)) is not None:
                return Found(fill, number, False)
            if self._closed:
                raise FailedPrecondition("use lazy layer", self._subject, hint="it is closed")
            fill = Fill(range(number, self._end_of_stretch(number, stop, most)))
            self._busy.update(dict.fromkeys(fill.units, fill))
            return Found(fill, number, True)

    def drain(self, timeout: float) -> bool:
        """Begin no more; wait up to `timeout` seconds for those under way; tell if all ended."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._busy, timeout)

    def done(self, fill: Fill, number: int, error: LaminaError | None = None) -> None:
        """Say that a unit is in the cache, or why not; whoever waits for it is told."""
        with self._changed:
            if error is not None:
                fill.errors[number] = error
            fill.left.discard(number)
            self._busy.pop(number, None)
            for waiter in fill.waiters:
                waiter.wanted.discard(number)
                if not waiter.wanted:
                    waiter.ready.set()
            if not self._busy:
                self._changed.notify_all()

    def give_up(self, fill: Fill, error: LaminaError) -> None:
        """Say why none of the units that are left will come."""
        for number in sorted(fill.left):
            self.done(fill, number, error)

    def ended(self, fill: Fill, units: range, seconds: float) -> bool:
        """Wait up to so many seconds until a request has none of `units` left; tell if so."""
        with self._changed:
            waiter = _Waiter(fill.left.intersection(units))
            if not waiter.wanted:
                return True
            fill.waiters.append(waiter)
        ended = waiter.ready.wait(max(0.0, seconds))
        with self._changed:
            fill.waiters.remove(waiter)
        return ended

    def wait(self, fill: Fill, units: range, deadline: float) -> None:
        """Wait until a request has brought `units`.

        Args:
            fill: the request.
            units: of those that it was made for.
            deadline: `time.monotonic()` seconds.

        Raises:
            DataLoss: the source's bytes are not what their digest says.
            ResourceExhausted: the disk is full.
            Unavailable: the source gives nothing just now; so do Unauthenticated, NotFound, ...
            DeadlineExceeded: it took too long.
        """
        if not self.ended(fill, units, deadline - time.monotonic()):
            raise DeadlineExceeded(
                f"fetch units {fill.units.start} to {fill.units.stop - 1}",
                self._subject,
                hint=f"nothing came for {self._policy.fill_seconds:g} s;"
                " see whether the registry can be reached",
            )
        with self._changed:
            failed = min(fill.errors.keys() & set(units), default=None)
        if failed is not None:
            raise self._again(fill.errors[failed])

    def _again(self, error: LaminaError) -> LaminaError:
        """Return an error of the waiting thread's own: raising one twice mixes its traces."""
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), Internal)
        again = kind(f"fill {self._subject}: {error.what}", error.subject, hint=error.hint)
        again.__cause__ = error
        return again

    def _end_of_stretch(self, start: int, stop: int, most: int) -> int:
        first, end = self._table.source_range(start)
        number = start + 1
        while number < stop:
            offset, following = self._table.source_range(number)
            near = end <= offset <= end + self._policy.gap_bytes
            if not near or following - first > most:
                break
            if number in self._busy or self._map.next_wanted(number, number + 1) is None:
                break
            end = following
            number += 1
        return number
