"""What was read of layers, as ranges of their blobs: the same on every machine."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from lamina.errors import InvalidArgument
from lamina.lazy.unit_list import stretches
from lamina.lazy.view import LayerView


def read_trace(lines: Iterable[str], name: str) -> list[dict[str, object]]:
    """Return the lines of a trace: each a JSON object, as `lamina lazy trace` prints them.

    Args:
        lines: of the file.
        name: of the file, for messages.

    Raises:
        InvalidArgument: a line is none of a trace; names it.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _no_trace(where) from error
        if not isinstance(value, dict):
            raise _no_trace(where)
        ranges_of_layer(value, where)
        found.append(value)
    return found


def ranges_of_layer(
    value: Mapping[str, object], where: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """Return the layer's digest, and the ranges of one line of a trace.

    Args:
        value: of the line.
        where: it was, for messages.

    Raises:
        InvalidArgument: it is none.
    """
    digest, ranges = value.get("layer"), value.get("ranges")
    if not isinstance(digest, str) or not isinstance(ranges, list):
        raise _no_trace(where)
    found = []
    for pair in ranges:
        if not isinstance(pair, list | tuple) or [type(number) for number in pair] != [int, int]:
            raise _no_trace(where or digest)
        found.append((pair[0], pair[1]))
    return digest, found


def _no_trace(where: str) -> InvalidArgument:
    hint = 'a line is {"layer": DIGEST, "ranges": [[START, STOP], ...]}: see `lamina lazy trace`'
    return InvalidArgument("read trace", where, hint=hint)


def source_ranges(view: LayerView) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the blob that were read, in the order of their first use."""
    for stretch in stretches(view.trace):
        yield (
            view.table.source_range(stretch.start)[0],
            view.table.source_range(stretch.stop - 1)[1],
        )


def units_in(view: LayerView, ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the units that have bytes of the blob in these ranges, in their order."""
    count = len(view.table)
    order = sorted(range(count), key=lambda number: view.table.source_range(number)[0])
    starts = [view.table.source_range(number)[0] for number in order]
    found: dict[int, None] = {}
    for start, stop in ranges:
        index = max(0, bisect_right(starts, start) - 1)
        while index < count and starts[index] < stop and start < stop:
            if view.table.source_range(order[index])[1] > start:
                found[order[index]] = None
            index += 1
    return list(found)
