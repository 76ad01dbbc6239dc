"""What of lazy layers on the disk can be checked, and what is damaged of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lamina.core.problem import Problem, Repair
from lamina.errors import FormatError
from lamina.lazy.checking import damaged_bytes
from lamina.lazy.layer import DATA, LAYER, LOCK, TABLE
from lamina.snapshotters.erofs_check import PULL_AGAIN

_WRITING_SECONDS = 60.0
"""Since the last change of metadata: what is claimed now, is being written."""


def is_written(image: Path) -> bool:
    """Tell whether there is metadata, and nobody seems to be at it."""
    try:
        age = time.time() - image.stat().st_mtime
    except FileNotFoundError:
        return False
    return age > _WRITING_SECONDS


def lost_problem(id: int, caches: Iterable[Path]) -> Problem | None:
    """Look for what caches cannot be served without; None where all is there.

    What is in them is not meant: where that is gone, it is fetched anew.
    """
    needed = (cache / name for cache in caches for name in (LAYER, TABLE, LOCK))
    lost = next((path for path in needed if not path.exists()), None)
    return None if lost is None else Problem(str(id), f"{lost} is gone", PULL_AGAIN)


def cache_problem(id: int, cache: Path, empty: Callable[[], object]) -> Problem | None:
    """Read all of a cache that is complete; None where that is sound.

    Args:
        id: of a layer that has it.
        cache: its directory.
        empty: has all of the layer fetched anew; see `Repair.run`.

    Raises:
        OSError: a file cannot be read.
        Cancelled: see `core.cancel`.
    """
    try:
        count = damaged_bytes(cache)
    except FormatError as error:
        return Problem(str(id), str(error), PULL_AGAIN)
    if not count:
        return None
    repair = Repair("empties it, so that it is fetched anew", empty)
    return Problem(str(id), f"{count} bytes of {cache / DATA} are damaged", "", repair)
