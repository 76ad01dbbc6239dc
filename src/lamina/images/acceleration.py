"""The layer on top of an overlaybd image that says what to prefetch.

It is a tar with one member, `trace`, here a list of paths, one a line, in the order in which they
are wanted. overlaybd fetches what these files have of the device; it passes over paths with other
characters than `A-Z a-z 0-9 _ - . /`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from lamina.formats.lsmt.annotations import MAX_PATHS_SIZE, TRACE_NAME
from lamina.formats.tar import END_OF_ARCHIVE, Entry, header, padding
from lamina.images.manifest import History
from lamina.images.tree import PlatformImage

_CREATED_BY = "Acceleration Layer"
"""As overlaybd's `record-trace` has it in the history."""


@dataclass(frozen=True, slots=True)
class MadeTrace:
    """An acceleration layer.

    Attributes:
        layer: its tar.
        paths: how many it names.
        warnings: what it could not name, as sentences.
    """

    layer: bytes
    paths: int
    warnings: tuple[str, ...]


def make_acceleration(paths: Iterable[bytes]) -> MadeTrace:
    """Return the layer that has these files prefetched, as many as overlaybd takes.

    Args:
        paths: clean, from the root, the first being wanted first; those that are there twice
            count once.
    """
    wanted = list(dict.fromkeys(paths))
    said = [path for path in wanted if _can_be_said(path)]
    lines = [b"/" + path + b"\n" for path in said]
    fitting = bisect_right(list(accumulate(map(len, lines))), MAX_PATHS_SIZE)
    warnings = []
    if unsaid := len(wanted) - len(said):
        warnings.append(f"{unsaid} files are not prefetched: a list cannot have their names")
    if left := len(lines) - fitting:
        limit = f"a list has {MAX_PATHS_SIZE} bytes at most"
        warnings.append(f"the last {left} files are not prefetched: {limit}")
    data = b"".join(lines[:fitting])
    entry = Entry(TRACE_NAME.encode(), mode=0o444, size=len(data))
    layer = header(entry) + data + bytes(padding(len(data))) + END_OF_ARCHIVE
    return MadeTrace(layer, fitting, tuple(warnings))


def _can_be_said(path: bytes) -> bool:
    """Tell whether a line of a list is that path, and no directory with all below it."""
    return b"\n" not in path and not path.endswith((b" ", b"/", b"*"))


def with_acceleration(image: PlatformImage) -> list[dict[str, object]] | None:
    """Return an image's history with the layer; None for one that does not match its layers."""
    said = image.config.history
    if sum(not step.empty_layer for step in said) != len(image.manifest.layers):
        return None
    found: list[dict[str, object]] = msgspec.to_builtins([*said, History(created_by=_CREATED_BY)])
    return found
