"""Where a place for a snapshotter is set up, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from lamina.provision.steps import Say
from lamina.provision.unit import BootUnit

RecordsT = TypeVar("RecordsT")


class Site(NamedTuple, Generic[RecordsT]):
    """Where one is set up.

    Attributes:
        records: what was set up.
        root: Lamina's.
        program: what runs `lamina`, for the unit.
        unit: makes the unit of that name.
        say: told of each step before it is done.
    """

    records: RecordsT
    root: Path
    program: Sequence[str]
    unit: Callable[[str], BootUnit]
    say: Say

    def command(self, group: str, verb: str) -> tuple[str, ...]:
        """Return the command of this root for a verb: `btrfs` and `activate`."""
        return (*self.program, "--root", str(self.root), group, verb)
