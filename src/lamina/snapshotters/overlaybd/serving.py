"""Opens the cache of a device, and the layers that have the rest, in the lazy worker."""

from __future__ import annotations

from pathlib import Path

from lamina.errors import DataLoss
from lamina.lazy.cache import LayerCache
from lamina.lazy.fetching import Counters
from lamina.lazy.sources.description import SourceDescription
from lamina.snapshotters.lazy_access import read_access
from lamina.snapshotters.lazy_blobs import open_cache
from lamina.snapshotters.overlaybd.device import device_size, open_stack
from lamina.snapshotters.overlaybd.device_source import DeviceSource
from lamina.snapshotters.overlaybd.notes import DEVICE, DeviceNote, read_note


def open_device(directory: Path) -> LayerCache:
    """Open the cache of a snapshot's device; see `LayerCache`."""
    opener = _Opener(directory.parent)
    cache = open_cache(directory, opener.open, counts_fetched=False)
    opener.counters = cache.counters
    return cache


class _Opener:
    """Opens the layers of a device once something of it is missing.

    Attributes:
        counters: of the cache, which are told what requests bring.
    """

    def __init__(self, snapshot: Path) -> None:
        self._snapshot = snapshot
        self.counters: Counters | None = None

    def open(self, _: SourceDescription) -> DeviceSource:
        """Open all layers.

        Raises:
            DataLoss: what is known of one is gone.
            LaminaError: one is damaged, or cannot be had.
        """
        snapshot = self._snapshot
        note = read_note(snapshot, DEVICE, DeviceNote)
        if note is None:
            raise DataLoss("find the layers of a device", snapshot)
        directories = [snapshot.with_name(str(id)) for id in note.layers]
        stack, held = open_stack(directories, read_access(snapshot), self._report)
        return DeviceSource(stack, device_size(stack), close=held.close)

    def _report(self, requests: int, size: int) -> None:
        if self.counters is not None:
            self.counters.add(requests=requests, fetched_bytes=size)
