"""Which units to fetch before anybody asks for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from lamina.lazy.policy import FillPolicy
from lamina.lazy.table import UnitTable

_STREAMS = 64
"""Readers that are followed at once; the one that went on longest ago is forgotten."""


class _Stream(NamedTuple):
    """A reader that is expected at a unit: what is fetched already up to, and how far to go."""

    end: int
    window: int


class ReadAhead:
    """Follows readers that go straight on, as the kernel does for files; safe for threads.

    The second unit in a row starts it. A reader that comes to the first unit that was fetched ahead
    has the next, twice as many, fetched while it reads those.
    """

    def __init__(self, table: UnitTable, policy: FillPolicy) -> None:
        self._table = table
        self._first = min(policy.readahead_first, policy.readahead_most)
        self._most = policy.readahead_most
        self._lock = threading.Lock()
        self._expected: OrderedDict[int, _Stream] = OrderedDict()

    def after(self, units: range) -> range:
        """Return the units to fetch ahead, now that somebody reads `units`; mostly none."""
        if not self._most or not units:
            return range(0)
        with self._lock:
            hit = min((number for number in self._expected if number in units), default=-1)
            if hit < 0:
                self._expect(units.stop, _Stream(units.stop, self._first))
                return range(0)
            stream = self._expected.pop(hit)
            start = max(stream.end, units.stop)
            end = self._advance(start, stream.window)
            self._expect(start, _Stream(end, min(2 * stream.window, self._most)))
            return range(start, end)

    def _expect(self, number: int, stream: _Stream) -> None:
        if number >= len(self._table):
            return
        self._expected.setdefault(number, stream)
        self._expected.move_to_end(number)
        if len(self._expected) > _STREAMS:
            self._expected.popitem(last=False)

    def _advance(self, start: int, window: int) -> int:
        """Return the end of the units from `start` on that have `window` bytes, at least one."""
        end = start
        while window > 0 and end < len(self._table):
            window -= self._table.cache_length(end)
            end += 1
        return end
