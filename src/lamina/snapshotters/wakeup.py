"""Starts the janitor, the process that does the background work of a root directory.

A registration per snapshotter, `ROOT/janitor.d/ID.json`, tells the janitor what there is, with the
configuration it was last opened with.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.snapshotters.plugin import AnyPlugin, SnapshotterConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

LOCK = "janitor.lock"
REGISTRATIONS = "janitor.d"
DELAY_SECONDS = 0.2
"""How long a wake-up waits for others, so that many removals start one process."""

# `-m lamina.snapshotters.janitor`, but idle before it imports anything: that is most of what a
# short run costs, and a daemon under load has many of them.
_PROGRAM = """\
import contextlib, os, sys
with contextlib.suppress(OSError):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
from lamina.snapshotters.janitor import main
sys.exit(main(sys.argv[1:]))
"""


class Janitor:
    """Wakes the janitor of a root; for any number of snapshotters there.

    Args:
        root: Lamina's root directory, which exists.

    Attributes:
        ended: how many runs that were started here have ended.
        failed: how many of them have left something undone.
    """

    def __init__(self, root: Path) -> None:
        self.ended = 0
        self.failed = 0
        self._undone = False
        self._root = root.absolute()
        self._mutex = threading.Lock()
        self._hurry = threading.Event()
        self._coming: threading.Event | None = None

    def register(self, plugin: AnyPlugin, config: SnapshotterConfig, directory: Path) -> None:
        """Let the janitor know of a snapshotter and of how to load its driver."""
        settings = dataclasses.asdict(config)
        text = json.dumps({"id": plugin.id, "directory": str(directory.absolute()),
                           "config": settings})  # fmt: skip
        path = self._root / REGISTRATIONS / f"{plugin.id}.json"
        path.parent.mkdir(0o700, exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        new = path.with_name(f".{plugin.id}.{os.getpid()}.{threading.get_ident()}")
        new.write_text(text, encoding="utf-8")
        new.replace(path)

    def wake(self) -> None:
        """Have the janitor run soon; returns at once."""
        with self._mutex:
            if self._coming is not None:
                return
            self._coming = threading.Event()
            thread = threading.Thread(
                target=self._start, args=(self._coming,), name="wake-janitor", daemon=True
            )
            # A thread that takes signals would take those that `lamina run` is to pass on.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                thread.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Have a wake-up that is still waiting carried out now."""
        self._hurry.set()
        with self._mutex:
            coming = self._coming
        if coming is not None:
            coming.wait()

    def _start(self, started: threading.Event) -> None:
        self._hurry.wait(DELAY_SECONDS)
        with self._mutex:
            self._coming = None  # whoever wakes from now on may come too late for this one
        try:
            child = None if janitor_runs(self._root) else _spawn(self._root)
        except OSError as error:  # whoever opens the root next wakes it
            log.warning("cannot start the janitor: %s", error)
            return
        finally:
            started.set()
        if child is not None:
            with suppress(ChildProcessError):  # a program that ignores SIGCHLD has no children
                self._count(os.waitpid(child, 0)[1])

    def _count(self, status: int) -> None:
        with self._mutex:
            self.ended += 1
            self.failed += status != 0
            news = bool(status) and not self._undone
            self._undone = bool(status)
        if news:
            # Its standard error is nobody's: it outlives whoever might be reading there.
            log.info(
                "the janitor has left something undone in %s; `lamina snapshots cleanup` says what",
                self._root,
            )


def janitor_runs(root: Path) -> bool:
    """Tell whether a janitor is at work, one that will look again before it ends."""
    try:
        with janitor_lock(root, fcntl.LOCK_SH) as locked:
            return not locked
    except FileNotFoundError:
        return True  # the root is gone: nothing is left to do


@contextmanager
def janitor_lock(root: Path, kind: int) -> Iterator[bool]:
    """Hold the lock that makes a process the janitor during the body; False if another has it."""
    fd = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _spawn(root: Path) -> int:
    # -P: a module in the current directory must not take the place of one of ours.
    argv = [sys.executable, "-P", "-c", _PROGRAM, str(root)]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
    ]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    return os.posix_spawn(
        argv[0], argv, os.environ, file_actions=actions, setsid=True, setsigmask=[]
    )


def _inheritable() -> list[int]:
    """Return the descriptors, but the first three, that a new program would get.

    Python's own are not among them; those that this process was started with may be: a shell's
    lock, or sockets of the service manager, which must not stay open for as long as disks are busy.
    """
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, as the one is that lists the directory
            if int(path.name) > 2 and os.get_inheritable(int(path.name)):
                found.append(int(path.name))
    return found
