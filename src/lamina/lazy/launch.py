"""Reaches the lazy worker of a root, starting holder, standby and worker where there is none."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from lamina.errors import Unavailable
from lamina.lazy import control, holder
from lamina.lazy.control import LAUNCH_LOCK
from lamina.lazy.keeping import worker_command
from lamina.lazy.served import GateName

DIRECTORY = "lazy"
LOG = "worker.log"
LINGER_SECONDS = 10.0
_ATTEMPTS = 3
_START_SECONDS = 30.0
_PAUSE = 0.02


class LazyWorker:
    """The lazy worker of a root, in whichever process it is. Safe to use from any thread.

    Args:
        root: Lamina's root directory, which exists. The worker keeps its files in `root/lazy`.
        linger: how many seconds a worker that is started here, and nothing needs any more, waits
            for a new layer.
    """

    def __init__(self, root: Path, *, linger: float = LINGER_SECONDS) -> None:
        self._directory = root.absolute() / DIRECTORY
        self._linger = linger

    @property
    def directory(self) -> Path:
        """Where the worker keeps its socket, locks, log and mount point."""
        return self._directory

    def add(self, layer: Path, factory: str, gate: GateName) -> Path:
        """Serve a layer, starting a worker where none runs; return the file to mount.

        Of a complete layer that is the cache file itself, and it is not served, unless it was
        before.

        The file has to be opened by the mount after this has returned.

        Args:
            layer: its directory.
            factory: `module:callable` that makes a `Filler` of it, in the worker.
            gate: through which it is read.

        Raises:
            Unavailable: no worker can be started; its log says why.
            LaminaError: the layer cannot be served.
        """
        answer = self._ask(control.Add(str(layer), factory, gate), control.Added, start=True)
        return Path(answer.path)

    def add_writable(self, device: Path) -> Path:
        """Serve a writable device, starting a worker where none runs; return a file to write to.

        What lies below it is served too, with the gate `fuse`, until it is complete and synced.
        The worker stays until the device is removed.

        Args:
            device: its directory, from `create_writable`.

        Raises:
            Unavailable: no worker can be started; its log says why.
            LaminaError: it cannot be served.
        """
        answer = self._ask(control.Add(str(device), "", "writable"), control.Added, start=True)
        return Path(answer.path)

    def remove(self, layer: Path) -> None:
        """Serve a layer or a device no more, that nothing has mounted any more.

        Raises:
            FailedPrecondition: writable devices that are served need the layer.
            LaminaError: what the worker says.
        """
        self._ask(control.Remove(str(layer)), control.Done, start=True)

    def status(self) -> control.Report:
        """Describe the layers that are served.

        Raises:
            Unavailable: no worker runs.
        """
        return self._ask(control.Status(), control.Report)

    def prefetch(self, layer: Path, *, everything: bool = True) -> None:
        """Begin to fetch what a layer's `wanted` names, in its order, and at once.

        It is gone on with by later workers, and after failures.

        Args:
            layer: its directory.
            everything: then fetch the rest too, giving way to readers.

        Raises:
            NotFound: it is not served, as one that was complete when it was added.
            Unavailable: no worker runs.
        """
        self._ask(control.Prefetch(str(layer), everything), control.Done)

    def wait(self, layer: Path, seconds: float) -> None:
        """Make a layer complete, and return when it is.

        Raises:
            NotFound, Unavailable: as `prefetch`.
            DeadlineExceeded: it takes longer.
            LaminaError: it failed; it is tried again in the background, some time later.
        """
        self._ask(control.Wait(str(layer), seconds), control.Done)

    def upgrade(self) -> None:
        """Have a new worker, of the program as it is now, take over from the one that runs.

        Raises:
            Unavailable: no worker runs.
        """
        self._ask(control.Upgrade(), control.Done)

    def _ask(
        self,
        request: control.Request,
        kind: type[control.AnswerKind],
        *,
        start: bool = False,
    ) -> control.AnswerKind:
        # More than once, because a worker that is not needed may end at any time.
        for _ in range(_ATTEMPTS if start else 0):
            try:
                return control.ask(self._directory, request, kind)
            except Unavailable:
                self._start()
        return control.ask(self._directory, request, kind)

    def _start(self) -> None:
        """Start the processes, and return when the worker answers."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self._directory / LAUNCH_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._answers():
                self._spawn()
                self._wait_for_answer()
        finally:
            os.close(lock)

    def _answers(self) -> bool:
        try:
            control.ask(self._directory, control.Status(), control.Report)
        except Unavailable:
            return False
        return True

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                hint = f"see {self._directory / LOG}"
                raise Unavailable("start the lazy worker", self._directory, hint=hint)
            time.sleep(_PAUSE)

    def _spawn(self) -> None:
        log = str(self._directory / LOG)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        argv = holder.self_command("launch", str(self._directory), worker_command(self._linger))
        child = os.posix_spawn(
            argv[0],
            [*argv, json.dumps({"kept": {}})],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
        os.waitpid(child, 0)
