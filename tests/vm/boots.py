"""The virtual machines of a session: started before the tests whose they are have their turn.

As many work at a time as there are processors, on what the tests of this machine leave of them:
these wait for disks, processes and the clock, and must not be late.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import Machine

NICENESS = 10
"""A tenth of a processor's time where a test of this machine wants it, and all of it otherwise."""


class Boot(ABC):
    """A machine that is started when there is room for it, or when it is needed."""

    def __init__(self) -> None:
        self._machine: Machine | None = None

    @abstractmethod
    def _begin(self, directory: Path) -> Machine:
        """Start the machine, in an empty directory."""

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._machine is not None

    def running(self) -> bool:
        """Whether it is at work."""
        return self._machine is not None and self._machine.running()

    def start(self) -> Machine:
        """Start it, unless that was done; on the main thread."""
        if self._machine is None:
            self._machine = self._begin(Path(tempfile.mkdtemp(prefix="vm-")))
            self._machine.give_way(NICENESS)
        return self._machine

    def stop(self) -> None:
        """Stop it, if it was started."""
        if self._machine is not None:
            self._machine.stop()


class Ahead(Boot):
    """The machine of one test; `begin` starts it, given a directory and the test's parameters."""

    def __init__(self, begin: Callable[..., Machine], **parameters: Any) -> None:
        super().__init__()
        self._start = begin
        self._parameters = parameters

    def _begin(self, directory: Path) -> Machine:
        return self._start(directory, **self._parameters)


class Boots:
    """Every boot of the session, and the tests that wait for it."""

    def __init__(self) -> None:
        self.items: dict[pytest.Item, Boot] = {}
        self._boots: list[Boot] = []

    def add(self, boot: Boot, items: Iterable[pytest.Item]) -> None:
        """Take a boot in; those added first are started first."""
        self._boots.append(boot)
        self.items.update(dict.fromkeys(items, boot))

    def of(self, item: pytest.Item) -> Boot | None:
        """Return the boot that a test waits for, if it waits for one."""
        return self.items.get(item)

    def start_more(self) -> None:
        """Start what there is room for."""
        free = len(os.sched_getaffinity(0)) - sum(boot.running() for boot in self._boots)
        waiting = (boot for boot in self._boots if not boot.started)
        for boot in islice(waiting, max(free, 0)):
            boot.start()

    def stop(self) -> None:
        """Stop all that were started."""
        for boot in self._boots:
            boot.stop()
