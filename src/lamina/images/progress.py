"""What a pull, an import, a push or a migration tells while it runs, and where its time went."""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from lamina.core.digest import Digest


class Stage(enum.StrEnum):
    """How far a blob or a layer is."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    UNPACKING = "unpacking"
    UNPACKED = "unpacked"
    """Extracted, and waiting for the layers below to be committed."""
    COPYING = "copying"
    """From another snapshotter."""
    VERIFYING = "verifying"
    CONVERTING = "converting"
    UPLOADING = "uploading"
    EXISTS = "exists"
    """Nothing had to be done."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Event:
    """News of one blob.

    Attributes:
        ref: `KIND-DIGEST`, as containerd names it: `layer-sha256:...`.
        offset: bytes that are there; of the blob while downloading.
        total: its size in bytes.
    """

    ref: str
    digest: Digest
    stage: Stage
    offset: int = 0
    total: int = 0


class Progress(Protocol):
    """Receives events, from several threads at once; must neither block nor raise."""

    def update(self, event: Event) -> None:
        """Take the event in."""
        ...


class Silent:
    """Ignores all events."""

    def update(self, event: Event) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds of the clock on the wall.

    Attributes:
        download: at least one download was running.
        unpack: nothing was downloading any more and layers were still being unpacked.
        downloaded: bytes that came from the registry.
    """

    download: float = 0.0
    unpack: float = 0.0
    downloaded: int = 0

    @property
    def bottleneck(self) -> str:
        """`download` or `unpack`, whichever a faster machine should be faster at; "" for none."""
        if not self.download and not self.unpack:
            return ""
        return "download" if self.download >= self.unpack else "unpack"


class StageClock:
    """Measures `Timings` of work that overlaps."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._since = now()
        self._spans: dict[str, float] = {"download": 0.0, "unpack": 0.0}
        self._bytes = 0

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Count the body as `download` or `unpack`."""
        self._switch(stage, 1)
        try:
            yield
        finally:
            self._switch(stage, -1)

    def received(self, size: int) -> None:
        """Count bytes that came from a registry."""
        with self._lock:
            self._bytes += size

    def timings(self) -> Timings:
        """Return what was measured up to now."""
        self._switch("", 0)
        with self._lock:
            return Timings(self._spans["download"], self._spans["unpack"], self._bytes)

    def _switch(self, stage: str, change: int) -> None:
        with self._lock:
            now = self._now()
            if self._running["download"]:
                self._spans["download"] += now - self._since
            elif self._running["unpack"]:
                self._spans["unpack"] += now - self._since
            self._since = now
            if stage:
                self._running[stage] += change
