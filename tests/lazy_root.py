"""A root with lazy layers, and the three processes that serve it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from lamina.lazy.launch import LazyWorker
from lamina.lazy.served import GateName
from tests.killing import kill_all
from tests.lazy_filler import FACTORY

SECONDS = 60.0


def attempts() -> Iterator[int]:
    """Look again and again, for as long as a machine may take that others use too."""
    deadline = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < deadline:
        yield number
        number += 1
        time.sleep(0.02)


class _Process(NamedTuple):
    """A process of a root."""

    parent: int
    is_standby: bool


class Family(NamedTuple):
    """The three processes of a root."""

    holder: int
    standby: int
    worker: int


class Lazy:
    """A root with its worker, and layers to serve.

    The worker stays when nothing needs it, so that it can be asked what it has; with `hasty`, for
    tests that see it end, it does not.
    """

    def __init__(self, root: Path, *, hasty: bool = False) -> None:
        self.root = root
        self.worker = LazyWorker(root, linger=0.1 if hasty else SECONDS)

    def layer(self, name: str, data: bytes, **files: str) -> Path:
        directory = self.root / name
        directory.mkdir()
        (directory / "source").write_bytes(data)
        for file, text in files.items():
            (directory / file).write_text(text)
        return directory

    def add(self, layer: Path, gate: GateName) -> Path:
        return self.worker.add(layer, FACTORY, gate)

    def processes(self) -> dict[int, int]:
        """Return all processes of this root with their parents."""
        return {pid: process.parent for pid, process in self._processes().items()}

    def _processes(self) -> dict[int, _Process]:
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if os.fsencode(self.worker.directory) in arguments and fields[0] != "Z":
                    found[int(entry.name)] = _Process(int(fields[1]), b"standby" in arguments)
        return found

    def family(self, gone: Collection[int] = ()) -> Family:
        """Wait until all three processes are there, and none of `gone`, and return them."""
        for _ in attempts():
            processes = self._processes()  # some may have ended by the time of the answer
            worker = self.worker.status().pid
            if worker not in processes:
                continue
            holder = processes[worker].parent
            others = [
                pid
                for pid, process in processes.items()
                if process.parent == holder and process.is_standby
            ]
            if len(processes) == 3 and len(others) == 1 and processes.keys().isdisjoint(gone):
                return Family(holder, others[0], worker)
        raise AssertionError(f"no three processes: {self.processes()}")

    def kill_all(self) -> None:
        """Kill all at once, so that none can take another's place, and wait for their ends."""
        kill_all(self.processes)
