"""Runs of numbers: of blocks, and of inodes."""

from __future__ import annotations

from collections import deque

Run = tuple[int, int]
"""First number and how many."""


def append(runs: list[Run], start: int, length: int) -> None:
    """Add a run behind others, as part of the last if it goes on there."""
    if runs:
        last, size = runs[-1]
        if last + size == start:
            runs[-1] = (last, size + length)
            return
    runs.append((start, length))


def joined(runs: list[Run]) -> list[Run]:
    """Return runs in ascending order, those as one that touch."""
    found: list[Run] = []
    for start, length in sorted(runs):
        append(found, start, length)
    return found


def without(runs: list[Run], removed: list[Run]) -> list[Run]:
    """Return ascending runs without others, which are ascending too and lie within them."""
    found: list[Run] = []
    queue = deque(removed)
    for start, length in runs:
        end = start + length
        while queue and queue[0][0] < end:
            hole, size = queue.popleft()
            if hole > start:
                found.append((start, hole - start))
            start = hole + size
        if start < end:
            found.append((start, end - start))
    return found


def common(runs: list[Run], others: list[Run]) -> list[Run]:
    """Return what ascending runs have in common with others, which are ascending too."""
    found = []
    queue = deque(runs)
    for start, length in others:
        end = start + length
        while queue and sum(queue[0]) <= start:
            queue.popleft()
        for run, size in queue:
            if run >= end:
                break
            low, high = max(run, start), min(run + size, end)
            found.append((low, high - low))
    return found
