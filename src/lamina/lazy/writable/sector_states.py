"""What a sector of a writable device can be, and runs of sectors that are alike."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple


class State(enum.IntEnum):
    """What a sector is."""

    LOWER = 0
    """What lies below."""
    WRITTEN = 1
    """What the data file has."""
    ZEROS = 2


# Bytes of the file: 0, 1 and 2 as `State`, but for a 0 in a region that was zeroed, which is zeros;
# 3 is written since the last flush, and 0 before; 4 is that, and zeros before.
WRITE = bytes.maketrans(b"\0\2", b"\3\4")
"""What a write makes of them."""
SETTLE = bytes.maketrans(b"\3\4", b"\1\1")
"""What a flush does."""
REVERT = bytes.maketrans(b"\3\4", b"\0\2")
"""What a power loss does."""
ZERO = bytes.maketrans(b"\0\1\3\4", b"\2\2\2\2")
"""What a discard does."""
ZERO_TOUCHED = bytes.maketrans(b"\1\3\4", b"\2\2\2")
"""What it does where a 0 is zeros."""
SEEN = SETTLE
"""As what readers see them."""
SEEN_ZEROED = bytes.maketrans(b"\0\3\4", b"\2\1\1")
"""As what they see them where a 0 is zeros."""

FRESH_RUNS = re.compile(rb"[\x03\x04]+")
_RUNS = re.compile(rb"\x00+|\x01+|\x02+")


class Run(NamedTuple):
    """Sectors that are alike: from `first` up to `stop`."""

    first: int
    stop: int
    state: int


def runs(states: bytes) -> Iterator[Run]:
    """Yield the runs of what `SectorMap.states` returns, counted from its first sector."""
    for found in _RUNS.finditer(states):
        yield Run(found.start(), found.end(), states[found.start()])
