"""What the lazy layers of a snapshotter have and have cost, for whoever watches it.

All of it is read from small files beside the caches. Nobody is asked: a worker that hangs, or is
gone, holds up nothing here, and none is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from lamina.core.driver import Driver, Lazy
from lamina.core.labels import UNPACKED
from lamina.lazy.cost import Cost, read_cost
from lamina.lazy.launch import DIRECTORY
from lamina.lazy.layer import DATA, MAP
from lamina.lazy.served import ServedList
from lamina.snapshotters.engine import Engine

LayerState = Literal["empty", "partial", "complete", "doubtful", "unpacked"]
"""What a layer has: nothing, something, everything; what nobody knows; or it is not lazy."""


class LazyTotals(NamedTuple):
    """Sums over the layers of one snapshotter.

    Attributes:
        layers: how many there are in each state.
        local_bytes: in the caches.
        size_bytes: `local_bytes` of caches that have everything.
        requests, fetched_bytes, fills, wait_seconds, failures: as `Cost` has them, since the first
            look. They never fall, not even when a layer is removed.
    """

    layers: dict[LayerState, int]
    local_bytes: int
    size_bytes: int
    requests: int
    fetched_bytes: int
    fills: int
    wait_seconds: float
    failures: int


class LazyTally:
    """Adds up the lazy layers of one snapshotter; for one thread.

    Args:
        engine: of a driver that is `Lazy`; stays the caller's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._driver: Driver = engine.driver
        self._lazy = cast(Lazy, engine.driver)
        self._before: dict[Path, Cost] | None = None
        self._spent = Cost()

    def totals(self) -> LazyTotals:
        """Look at all layers.

        Raises:
            LaminaError: the store cannot be asked, or the worker's list of layers is damaged.
            OSError: a file cannot be read.
        """
        layers: dict[LayerState, int] = dict.fromkeys(get_args(LayerState), 0)
        costs: dict[Path, Cost] = {}
        local = size = 0
        for cache, state, cost in self._look():
            layers[state] += 1
            if cache is not None:
                costs[cache] = cost
                local, size = local + cost.local_bytes, size + cost.unit_bytes
        self._count(costs)
        spent = self._spent
        return LazyTotals(
            layers, local, size,
            spent.requests, spent.fetched_bytes, spent.fills, spent.wait_seconds, spent.failures,
        )  # fmt: skip

    def _look(self) -> Iterator[tuple[Path | None, LayerState, Cost]]:
        doubtful = self._doubtful()
        seen: set[Path] = set()
        for id in self._engine.ids().values():
            files = self._lazy.lazy_layers(id)
            if not files and UNPACKED in self._driver.info_labels(id):
                yield None, "unpacked", Cost()
            for cache in {found.cache for found in files} - seen:
                seen.add(cache)
                try:
                    cost = _cost(cache)
                    state = "doubtful" if cache in doubtful else _state(cache, cost)
                except FileNotFoundError:
                    continue  # removed meanwhile, or damaged: fsck says so
                yield cache, state, cost

    def _doubtful(self) -> set[Path]:
        served = ServedList(self._engine.root / DIRECTORY).layers
        return {Path(layer.directory) for layer in served if layer.doubt}

    def _count(self, costs: dict[Path, Cost]) -> None:
        """Add what was spent since the last look."""
        if self._before is not None:
            for cache, cost in costs.items():
                self._spent = _sum(self._spent, cost, self._before.get(cache, Cost()))
        self._before = costs


def _cost(cache: Path) -> Cost:
    """Return what a cache has cost; it has nothing if it was emptied since it was last open."""
    cost = read_cost(cache)
    try:
        is_emptied = not (cache / MAP).stat().st_size
    except FileNotFoundError:
        is_emptied = True
    return cost._replace(local_bytes=0) if is_emptied else cost


def _state(cache: Path, cost: Cost) -> LayerState:
    if not (cache / DATA).stat().st_size:
        return "complete"  # a layer without data is never opened
    if not cost.local_bytes:
        return "empty"
    return "complete" if cost.local_bytes == cost.unit_bytes else "partial"


def _sum(spent: Cost, now: Cost, before: Cost) -> Cost:
    """Add the difference; a file that was damaged, or removed, has begun anew, from nothing."""
    return Cost._make(
        total + (new - old if new >= old else new)
        for total, new, old in zip(spent, now, before, strict=True)
    )
