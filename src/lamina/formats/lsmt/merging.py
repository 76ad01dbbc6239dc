"""Indexes laid over each other: where several have a sector, the uppermost has its say.

All is one sweep along the device over mappings sorted by their first sector. Those that the sweep
is in are in a heap with the uppermost on top. Layers are swept a window at a time: of a million
mappings only some thousand are Python objects at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import repeat
from operator import lshift, or_

from lamina.errors import InvalidArgument, ResourceExhausted
from lamina.formats.lsmt.layout import (
    MAX_LAYERS,
    MAX_LENGTH,
    MAX_LOGGED,
    MAX_MERGED,
    MAX_OFFSET,
    MAX_PLACE,
    SECTOR,
    TAG_SHIFT,
    UNTAGGED,
    ZEROED,
)
from lamina.formats.lsmt.mappings import HOLE, ZEROS, Extent, Mappings, MappingsBuilder

_ROW_BITS = 32
_RANK_BITS = 40
"""A rank is a layer's number and a row: of two mappings, that with the higher rank lies above."""
_ROW = (1 << _ROW_BITS) - 1
_RANK = (1 << _RANK_BITS) - 1
_WINDOW = 1 << 16
"""Mappings that are sorted at once, more or less."""
_LEAST_STEP = 256
_LEAST_HEAP = 1024


def merge(layers: Sequence[Mappings]) -> Mappings:
    """Return the mappings of a device, with the numbers of the layers that they are from.

    Args:
        layers: from the lowest to the uppermost.

    Raises:
        InvalidArgument: there are more than MAX_LAYERS.
        ResourceExhausted: they have more than MAX_MERGED mappings.
    """
    if len(layers) > MAX_LAYERS:
        hint = f"a device has at most {MAX_LAYERS}"
        raise InvalidArgument(f"merge {len(layers)} LSMT layers", hint=hint)
    if (total := sum(map(len, layers))) > MAX_MERGED:
        raise ResourceExhausted(f"merge {total} LSMT mappings: more than {MAX_MERGED}")
    return _sweep(_sorted_keys(layers), layers, retag=True)


def replay(log: Mappings) -> Mappings:
    """Return what is left of mappings in the order in which they were written: later ones win.

    Args:
        log: mappings in any order.

    Raises:
        ResourceExhausted: there are more than MAX_LOGGED.
    """
    if len(log) > MAX_LOGGED:
        raise ResourceExhausted(f"replay {len(log)} LSMT mappings: more than {MAX_LOGGED}")
    return _sweep(iter(sorted(_keys(log, 0, 0, len(log)))), [log], retag=False)


def replay_writes(writes: Iterable[Extent]) -> Mappings:
    """Return the mappings that writes leave, in the order in which they were made.

    Args:
        writes: what was written, as whole sectors, and where in the file of a layer it lies; ZEROS
            for what was discarded. The place of a HOLE counts for nothing: it is passed over.

    Raises:
        InvalidArgument: a write is no whole sectors, or lies where no mapping can lead.
        ResourceExhausted: they need more than MAX_LOGGED mappings.
    """
    log = Mappings.empty()
    for extent in writes:
        if extent.layer == HOLE:
            continue
        for start, length, place in pieces(extent):
            log.starts.append(start)
            log.lengths.append(length)
            log.places.append(place)
        if len(log) > MAX_LOGGED:
            raise ResourceExhausted(f"replay more than {MAX_LOGGED} LSMT mappings")
    return replay(log)


def pieces(extent: Extent, limit: int = MAX_LENGTH) -> Iterator[tuple[int, int, int]]:
    """Yield mappings of at most `limit` sectors for an extent that is no hole.

    Raises:
        InvalidArgument: it is no whole sectors, or lies where no mapping can lead.
    """
    offset, length, layer, place = extent
    start, sectors, first = offset // SECTOR, length // SECTOR, place // SECTOR
    aligned = not (offset | length | place) % SECTOR
    inside = start >= 0 and sectors > 0 and start + sectors <= MAX_OFFSET
    told = ZEROS <= layer < MAX_LAYERS and layer != HOLE
    if not (aligned and inside and told and 0 <= first <= MAX_PLACE - sectors):
        hint = "it must be whole sectors, where mappings can lead"
        raise InvalidArgument("map LSMT extent", tuple(extent), hint=hint)
    zeros = layer == ZEROS
    word = ZEROED if zeros else layer << TAG_SHIFT | first
    for done in range(0, sectors, limit):
        yield start + done, min(limit, sectors - done), word if zeros else word + done


def _keys(mappings: Mappings, layer: int, first: int, stop: int) -> Iterator[int]:
    """Return numbers that sort by the first sector, then the rank."""
    starts = map(lshift, mappings.starts[first:stop], repeat(_RANK_BITS))
    base = layer << _ROW_BITS
    return map(or_, starts, range(base + first, base + stop))


def _sorted_keys(layers: Sequence[Mappings]) -> Iterator[int]:
    """Yield the keys of all mappings, a window of the device after the other."""
    step = max(_LEAST_STEP, _WINDOW // max(len(layers), 1))
    rows = [0] * len(layers)
    while True:
        ends = [
            found.starts[row + step]
            for row, found in zip(rows, layers, strict=True)
            if row + step < len(found)
        ]
        end = min(ends, default=MAX_OFFSET + 1)
        keys: list[int] = []
        for layer, found in enumerate(layers):
            row = rows[layer]
            rows[layer] = bisect_left(found.starts, end, row, min(row + step + 1, len(found)))
            keys += _keys(found, layer, row, rows[layer])
        keys.sort()
        yield from keys
        if not ends:
            return


def _sweep(keys: Iterator[int], layers: Sequence[Mappings], *, retag: bool) -> Mappings:
    sweep = _Sweep(layers, retag=retag)
    heap = sweep.heap
    position = 0
    for key in keys:
        start = key >> _RANK_BITS
        rank = key & _RANK
        end = start + layers[rank >> _ROW_BITS].lengths[rank & _ROW]
        if heap:
            above, above_end, _ = heap[0]
            if above_end > start and -above > rank:
                # It lies below what goes on here, and shows, if at all, only behind that.
                if end > above_end:
                    sweep.push((-rank, end, start), start)
                continue
            position = sweep.emit_until(position, start)
        position = max(position, start)
        sweep.push((-rank, end, start), start)
    sweep.emit_until(position, MAX_OFFSET + MAX_LENGTH + 1)
    return sweep.builder.mappings


class _Sweep:
    """Writes what shows.

    Attributes:
        heap: mappings that may show, the uppermost first: rank as a negative number, the sectors
            behind the end, and the first.
        builder: what was written.
    """

    def __init__(self, layers: Sequence[Mappings], *, retag: bool) -> None:
        self._layers = layers
        self._retag = retag
        self.heap: list[tuple[int, int, int]] = []
        self.builder = MappingsBuilder()
        self._most = _LEAST_HEAP

    def push(self, item: tuple[int, int, int], position: int) -> None:
        """Add to the heap, and rid it of what ended before a sector if it has become large."""
        heap = self.heap
        if len(heap) >= self._most:
            heap[:] = [other for other in heap if other[1] > position]
            heapify(heap)
            self._most = max(_LEAST_HEAP, 2 * len(heap))
        heappush(heap, item)

    def emit_until(self, position: int, stop: int) -> int:
        """Write what shows from one sector up to another; return where nothing more does."""
        heap = self.heap
        while heap and position < stop:
            negative, end, start = heap[0]
            if end <= position:
                heappop(heap)
                continue
            upto = min(end, stop)
            self._emit(-negative, position, upto - position, position - start)
            position = upto
        return position

    def _emit(self, rank: int, start: int, length: int, skipped: int) -> None:
        layer = rank >> _ROW_BITS
        place = self._layers[layer].places[rank & _ROW]
        if self._retag:
            place = place & UNTAGGED | layer << TAG_SHIFT
        if not place & ZEROED:
            place += skipped
        self.builder.add(start, length, place)
