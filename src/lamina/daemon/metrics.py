"""Prometheus metrics: what is counted at each call, and what is looked up at each scrape.

Nothing is measured on a timer. Sizes are those that the store has kept since the commits; no
directory is walked. Of a lazy layer a small file is read, see `lazy_metrics`. Only imported where
the configuration asks for metrics: the client library adds 5 MB to the daemon.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.process_collector import ProcessCollector

from lamina.daemon.lazy_metrics import LazyCollector, LazyLook
from lamina.errors import LaminaError
from lamina.meta.totals import Totals
from lamina.version import VERSION

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

Look = Callable[[], Totals]
Family = type[GaugeMetricFamily] | type[CounterMetricFamily]

_BY_SNAPSHOTTER = ("snapshotter",)
_TOTALS: tuple[tuple[Family, str, str, Callable[[Totals], int]], ...] = (
    (
        GaugeMetricFamily,
        "lamina_snapshots_size_bytes",
        "Bytes on disk of committed snapshots, as measured at their commits.",
        lambda totals: totals.usage.size,
    ),
    (
        GaugeMetricFamily,
        "lamina_snapshots_inodes",
        "Inodes of committed snapshots, as measured at their commits.",
        lambda totals: totals.usage.inodes,
    ),
    (
        GaugeMetricFamily,
        "lamina_snapshots_unsynced",
        "Committed snapshots that would not survive power loss yet.",
        lambda totals: totals.unsynced,
    ),
    (
        GaugeMetricFamily,
        "lamina_removals_pending",
        "Removed snapshots whose storage is still to be freed in the background.",
        lambda totals: totals.removals_pending,
    ),
    (
        CounterMetricFamily,
        "lamina_removals",
        "Removed snapshots whose storage is freed.",
        lambda totals: totals.removals_done,
    ),
)


class Metrics:
    """All metrics of one daemon.

    Args:
        snapshotters: returns, for each that is loaded by now, what asks its store; None for those
            that cannot be loaded.
        janitor: returns how many runs of the janitor have ended, and how many of them in vain.
        lazy: returns, for each snapshotter that has lazy layers, what adds them up.
    """

    def __init__(
        self,
        snapshotters: Callable[[], Mapping[str, Look | None]],
        janitor: Callable[[], tuple[int, int]],
        lazy: Callable[[], Mapping[str, LazyLook]] = dict,
    ) -> None:
        # Of our own: the library's default one brings collectors that cost at each scrape.
        self._registry = CollectorRegistry()
        self._duration = Histogram(
            "lamina_rpc_duration_seconds",
            "Time that calls have taken, without waiting for a thread.",
            ("method", "snapshotter", "code"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, str, str], Histogram] = {}
        ProcessCollector(registry=self._registry)
        self._registry.register(_Stores(snapshotters))
        self._registry.register(LazyCollector(lazy))
        self._registry.register(_Daemon(snapshotters, janitor))

    def measure(self, method: str, snapshotter: str, code: str, seconds: float) -> None:
        """Count a call that has ended."""
        key = (method, snapshotter, code)
        child = self._children.get(key)
        if child is None:  # `labels` checks and converts its arguments each time
            child = self._children[key] = self._duration.labels(*key)
        child.observe(seconds)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format, of `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Stores:
    """What the stores say of their snapshots."""

    def __init__(self, snapshotters: Callable[[], Mapping[str, Look | None]]) -> None:
        self._snapshotters = snapshotters

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: that would ask the stores."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Ask each store; one that fails does not keep the others from answering."""
        found = {id: self._ask(id, look) for id, look in self._snapshotters().items() if look}
        up = GaugeMetricFamily(
            "lamina_snapshotter_up", "Whether its store could be asked.", labels=_BY_SNAPSHOTTER
        )
        kinds = GaugeMetricFamily(
            "lamina_snapshots", "Snapshots by kind.", labels=(*_BY_SNAPSHOTTER, "kind")
        )
        for id, totals in found.items():
            up.add_metric((id,), totals is not None)
            for kind, count in totals.kinds.items() if totals else ():
                kinds.add_metric((id, str(kind).lower()), count)
        yield from (up, kinds)
        for family, name, text, value in _TOTALS:
            metric = family(name, text, labels=_BY_SNAPSHOTTER)
            for id, totals in found.items():
                if totals is not None:
                    metric.add_metric((id,), value(totals))
            yield metric

    @staticmethod
    def _ask(id: str, look: Look) -> Totals | None:
        try:
            return look()
        except LaminaError as error:
            log.warning("cannot ask the store", extra={"snapshotter": id, "error": str(error)})
            return None


class _Daemon:
    """What the daemon knows of itself."""

    def __init__(
        self,
        snapshotters: Callable[[], Mapping[str, Look | None]],
        janitor: Callable[[], tuple[int, int]],
    ) -> None:
        self._snapshotters = snapshotters
        self._janitor = janitor

    def collect(self) -> Iterator[Metric]:
        """Tell version, snapshotters, and the runs of the janitor."""
        yield InfoMetricFamily(
            "lamina_build",
            "What is running.",
            value={"version": VERSION, "python": platform.python_version()},
        )
        loaded = GaugeMetricFamily(
            "lamina_snapshotter_loaded",
            "Whether the snapshotter is usable here.",
            labels=("snapshotter",),
        )
        for id, look in self._snapshotters().items():
            loaded.add_metric((id,), look is not None)
        yield loaded
        ended, failed = self._janitor()
        yield CounterMetricFamily(
            "lamina_janitor_runs", "Ended runs of the background process.", value=ended
        )
        yield CounterMetricFamily(
            "lamina_janitor_failures",
            "Runs of the background process that have left work undone.",
            value=failed,
        )
