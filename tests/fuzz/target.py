"""What is fuzzed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Target(NamedTuple):
    """One reader.

    Attributes:
        seeds: makes inputs that are read without an error.
        run: reads an input, whatever it is; raises where there is a fault.
    """

    seeds: Callable[[], Iterable[bytes]]
    run: Callable[[bytes], None]
