"""How a cache fetches: sizes in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

FILL_SECONDS = 60.0
"""Longest time that a reader waits, unless it is told another."""


@dataclass(frozen=True, slots=True)
class FillPolicy:
    """What is asked for at once, how far ahead, and how long anybody waits.

    Attributes:
        fill_seconds: longest time that a reader waits, and that a fetch may go on.
        request_bytes: most source bytes of one request for several units; a bigger unit is
            requested alone.
        gap_bytes: source bytes between two units that are fetched with them rather than asking
            twice.
        readahead_first: cache bytes fetched ahead when a reader is found to go straight on.
        readahead_most: it doubles up to this; 0 for none. It is several requests, so that fetching,
            decoding and writing go on side by side.
        workers: threads that fetch for one cache, where it is given none to share.
        silence_seconds: background completion rests until no reader has waited, and no layer was
            asked for, for so long.
        background_bytes: as `request_bytes`, for background completion: a reader that comes in
            between shares the network with what is under way.
        background_requests: how many of these are under way at once.
    """

    fill_seconds: float = FILL_SECONDS
    request_bytes: int = 4 << 20
    gap_bytes: int = 64 << 10
    readahead_first: int = 512 << 10
    readahead_most: int = 32 << 20
    workers: int = 4
    silence_seconds: float = 5.0
    background_bytes: int = 1 << 20
    background_requests: int = 2
