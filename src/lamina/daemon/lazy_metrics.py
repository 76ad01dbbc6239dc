"""Metrics of lazy layers: sums for each snapshotter that has such layers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lamina.errors import LaminaError
from lamina.snapshotters.lazy_tally import LazyTotals

log = logging.getLogger(__name__)

LazyLook = Callable[[], LazyTotals]
Family = type[GaugeMetricFamily] | type[CounterMetricFamily]

_BY_SNAPSHOTTER = ("snapshotter",)
_TOTALS: tuple[tuple[Family, str, str, Callable[[LazyTotals], float]], ...] = (
    (
        GaugeMetricFamily,
        "lamina_lazy_local_bytes",
        "Bytes that the caches of lazy layers have.",
        lambda totals: totals.local_bytes,
    ),
    (
        GaugeMetricFamily,
        "lamina_lazy_size_bytes",
        "Bytes that the caches of lazy layers would have if all were complete.",
        lambda totals: totals.size_bytes,
    ),
    (
        CounterMetricFamily,
        "lamina_lazy_fetched_bytes",
        "Bytes that were fetched for lazy layers, as they are in the registry.",
        lambda totals: totals.fetched_bytes,
    ),
    (
        CounterMetricFamily,
        "lamina_lazy_requests",
        "Requests for ranges of layers.",
        lambda totals: totals.requests,
    ),
    (
        CounterMetricFamily,
        "lamina_lazy_fills",
        "Times that a reader found bytes missing.",
        lambda totals: totals.fills,
    ),
    (
        CounterMetricFamily,
        "lamina_lazy_wait_seconds",
        "Time that readers have waited for bytes, all together.",
        lambda totals: totals.wait_seconds,
    ),
    (
        CounterMetricFamily,
        "lamina_lazy_failures",
        "Units, some chunks of files each, that were asked for and did not come.",
        lambda totals: totals.failures,
    ),
)


class LazyCollector:
    """What the files beside the caches say.

    Args:
        looks: returns, for each snapshotter that has lazy layers, what adds them up.
    """

    def __init__(self, looks: Callable[[], Mapping[str, LazyLook]]) -> None:
        self._looks = looks

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: that would look at all layers."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Look at each snapshotter; one that fails is left out."""
        found = {id: totals for id, look in self._looks().items() if (totals := _ask(id, look))}
        layers = GaugeMetricFamily(
            "lamina_lazy_layers",
            "Layers that could be lazy, by what is there of them.",
            labels=(*_BY_SNAPSHOTTER, "state"),
        )
        for id, totals in found.items():
            for state, count in totals.layers.items():
                layers.add_metric((id, state), count)
        yield layers
        for family, name, text, value in _TOTALS:
            metric = family(name, text, labels=_BY_SNAPSHOTTER)
            for id, totals in found.items():
                metric.add_metric((id,), value(totals))
            yield metric


def _ask(id: str, look: LazyLook) -> LazyTotals | None:
    try:
        return look()
    except (LaminaError, OSError) as error:
        log.warning("cannot add up lazy layers", extra={"snapshotter": id, "error": str(error)})
        return None
