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

from lamina.errors import LaminaError
from lamina.formats.overlaybd.priorities import MAX_SIZE, Priority, write_priorities
from lamina.formats.overlaybd.trace import layer_tar
from lamina.formats.tar.layer import clean
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
        paths: from the root, the first being wanted first; those that are there twice count once.
    """
    wanted = [Priority(b"/" + path) for path in dict.fromkeys(map(clean, paths))]
    said = [priority for priority in wanted if _can_be_said(priority)]
    sizes = accumulate(len(priority.path) + 1 for priority in said)
    fitting = bisect_right(list(sizes), MAX_SIZE)
    warnings = []
    if unsaid := len(wanted) - len(said):
        warnings.append(f"{unsaid} files are not prefetched: a list cannot have their names")
    if left := len(said) - fitting:
        limit = f"a list has {MAX_SIZE} bytes at most"
        warnings.append(f"the last {left} files are not prefetched: {limit}")
    return MadeTrace(layer_tar(write_priorities(said[:fitting])), fitting, tuple(warnings))


def _can_be_said(priority: Priority) -> bool:
    """Tell whether a line of a list is that path, and nothing else."""
    try:
        write_priorities([priority])
    except LaminaError:
        return False
    return True


def with_acceleration(image: PlatformImage) -> list[dict[str, object]] | None:
    """Return an image's history with the layer; None for one that does not match its layers."""
    said = image.config.history
    if sum(not step.empty_layer for step in said) != len(image.manifest.layers):
        return None
    found: list[dict[str, object]] = msgspec.to_builtins([*said, History(created_by=_CREATED_BY)])
    return found
