"""Shows how far a pull is: bars on a terminal, one line for each step in a pipe."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from lamina.core.units import format_size
from lamina.images.progress import Event, Progress, Silent, Stage

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_NEWS = {Stage.DOWNLOADED, Stage.UNPACKED, Stage.EXISTS, Stage.DONE}
_SHOWN = 19
"""Characters of `KIND-sha256:HEX` that tell one blob from the others, as ctr cuts it."""


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Give a progress receiver that suits stderr, for the length of the operation."""
    if quiet:
        yield Silent()
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bars() as bars:
            yield _BarProgress(bars)
    else:
        yield _LineProgress()


class _LineProgress:
    """Prints a line when a blob has reached a stage; stages on the way are left out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def update(self, event: Event) -> None:
        """Print the event if it is news."""
        if event.stage not in _NEWS:
            return
        size = f" {format_size(event.total)}" if event.total else ""
        with self._lock:
            click.echo(f"{event.ref}: {event.stage}{size}", err=True)


class _BarProgress:
    """Keeps one bar for each blob."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def update(self, event: Event) -> None:
        """Move the blob's bar."""
        with self._lock:
            if event.ref not in self._tasks:
                self._tasks[event.ref] = self._bars.add_task(
                    _short(event.ref), stage="", total=None
                )
            task = self._tasks[event.ref]
        finished = event.stage in {Stage.DONE, Stage.EXISTS}
        self._bars.update(
            task,
            stage=str(event.stage),
            total=event.total or None,
            completed=event.total if finished else event.offset,
        )


def _short(ref: str) -> str:
    kind, _, digest = ref.partition("-sha256:")
    return f"{kind} {digest[:12]}" if digest else ref[:_SHOWN]


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[stage]}"),
        console=Console(stderr=True),
    )
