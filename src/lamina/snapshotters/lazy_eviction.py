"""Keeping the data of lazy layers within a budget, by emptying the caches of those nobody uses.

A layer is emptied as a whole, and with it all that were last used in the same instant: those of an
image are. Its names and attributes stay, so that it is as it was after the pull.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from lamina.core.driver import Shrunk
from lamina.errors import FailedPrecondition
from lamina.lazy.emptying import allocated, empty
from lamina.lazy.layer import DATA, LOCK
from lamina.snapshotters.lower_mounts import locked, unmount_all

log = logging.getLogger(__name__)

COMPLETES = "completes"
"""A mark beside a cache that is filled in the background, so that all of it counts.

It has the bytes that will be, in decimal digits, where the data file has holes that stay.
"""


class LazyLayer(NamedTuple):
    """Where a layer is.

    Attributes:
        id: of its snapshot.
        point: where it is mounted.
        is_open: whether something has it mounted, in whichever namespace.
        caches: its data.
    """

    id: int
    point: Path
    is_open: Callable[[], bool]
    caches: tuple[Path, ...]


def touch(layers: Iterable[LazyLayer]) -> None:
    """Note that layers are used now, all in one instant."""
    now = time.time_ns()
    for cache in _caches(layers):
        with suppress(FileNotFoundError):  # whoever mounts it says so
            os.utime(cache / LOCK, ns=(now, now))


def expected(layers: Iterable[LazyLayer]) -> int:
    """Return the bytes of disk that layers take, or will when their background work is done."""
    return sum(map(_expected, _caches(layers)))


def expect_all(cache: Path, size: int) -> None:
    """Note that all of a cache is fetched in the background, which is so many bytes.

    Raises:
        OSError: it cannot be written.
    """
    (cache / COMPLETES).write_text(str(size))


def _expected(cache: Path) -> int:
    taken = allocated(cache)
    try:
        size = (cache / COMPLETES).read_text()
    except FileNotFoundError:
        return taken
    return max(taken, int(size) if size.isdecimal() else (cache / DATA).stat().st_size)


def _caches(layers: Iterable[LazyLayer]) -> set[Path]:
    """Return the caches of layers, those that several have once."""
    return {cache for layer in layers for cache in layer.caches}


def evict(
    layer: LazyLayer, is_used: Callable[[int], bool], let_go: Callable[[Path], None]
) -> int | None:
    """Empty a layer that nobody uses; return how many bytes of disk that has freed, else None.

    Whoever makes a snapshot on it has a row in the store before it waits for the lock, so that
    either it is seen here, or it mounts the layer anew afterwards.

    Args:
        layer: the layer.
        is_used: whether a snapshot stands on it.
        let_go: has the worker serve a cache no more.

    Raises:
        LaminaError, OSError: it cannot be emptied; it can still be read.
    """
    with locked(layer.point):
        if is_used(layer.id):
            return None
        try:
            unmount_all(layer.point)
        except FailedPrecondition:
            return None  # somebody is in it
        # In another namespace, or below an overlay whose snapshot is gone.
        if layer.is_open():
            return None
        freed = [_empty(cache, let_go) for cache in layer.caches]
    emptied = [size for size in freed if size is not None]
    return sum(emptied) if emptied else None


def _empty(cache: Path, let_go: Callable[[Path], None]) -> int | None:
    let_go(cache)
    (cache / COMPLETES).unlink(missing_ok=True)
    try:
        return empty(cache)
    except FailedPrecondition as error:
        log.warning("cannot empty a cache now: %s", error, extra={"path": str(cache)})
        return None


def shrink(
    layers: Iterable[LazyLayer], to: int | None, evict_one: Callable[[LazyLayer], int | None]
) -> Shrunk:
    """Empty layers, those that were used longest ago first, until the rest fits.

    Args:
        layers: all that there are.
        to: bytes of disk; None for no bound.
        evict_one: empties one, or returns None.
    """
    found = sorted((_used(layer), layer) for layer in layers)
    left = sum(map(allocated, _caches(layer for _, layer in found)))
    freed = 0
    emptied: list[int] = []
    for _, group in groupby(found, key=lambda one: one[0]):
        if to is None or left <= to:
            break
        for _, layer in group:
            gone = evict_one(layer) if _has_data(layer) else None
            if gone is not None:
                left, freed = left - gone, freed + gone
                emptied.append(layer.id)
                log.info("emptied what a layer has cached", extra={"path": str(layer.point)})
    return Shrunk(tuple(emptied), freed, left)


def _has_data(layer: LazyLayer) -> bool:
    return any(map(_size_of_data, layer.caches))


def _size_of_data(cache: Path) -> int:
    try:
        return (cache / DATA).stat().st_blocks
    except FileNotFoundError:
        return 0


def _used(layer: LazyLayer) -> int:
    """Return when a layer was used: a cache that others have too may have been used since."""
    return min(map(_used_cache, layer.caches), default=0)


def _used_cache(cache: Path) -> int:
    try:
        return (cache / LOCK).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
