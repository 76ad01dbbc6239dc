"""A driver whose storage is one empty file per snapshot, and which fails and pauses on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lamina.core.driver import Ability, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import EMPTY_LABELS, Usage


class FileDriver:
    """`fail` and `pause` interfere with a method by its name."""

    abilities: frozenset[Ability] = frozenset()

    def __init__(self, root: Path) -> None:
        self.directory = root / "files"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.fail: dict[str, BaseException] = {}
        self.pause: dict[str, Callable[[], object]] = {}
        self.synced = 0

    def _step(self, name: str) -> None:
        if name in self.pause:
            self.pause[name]()
        if name in self.fail:
            raise self.fail[name]

    def create(self, snapshot: Snapshot) -> None:
        (self.directory / str(snapshot.id)).touch(exist_ok=False)
        self._step("create")

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        self._step("mounts")
        return [Mount("file", str(self.directory / str(snapshot.id)))]

    def seal(self, snapshot: Snapshot) -> Usage:
        self._step("seal")
        return Usage(1, 10)

    def usage(self, snapshot: Snapshot) -> Usage:
        self._step("usage")
        return Usage(1, 5)

    def destroy(self, id: int) -> None:
        self._step("destroy")
        (self.directory / str(id)).unlink(missing_ok=True)

    def ids(self) -> list[int]:
        return [int(path.name) for path in self.directory.iterdir()]

    def sync(self) -> None:
        self._step("sync")
        self.synced += 1

    def info_labels(self, id: int) -> Mapping[str, str]:
        return EMPTY_LABELS

    def close(self) -> None:
        self.fail.clear()
