"""Runs a container to learn which files its start reads: for how long, and what is known then."""

from __future__ import annotations

import enum
import os
import select
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from lamina.runtime.containers import Containers
from lamina.runtime.opened_files import OpenedFiles
from lamina.runtime.request import RunRequest

DEFAULT_PERIOD = 10.0
"""Seconds for which a container runs that nothing else is to end."""
_STEP_SECONDS = 0.05


class Ended(enum.StrEnum):
    """What ended a recording."""

    EXIT = "exit"
    PERIOD = "period"
    LINE = "line"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Until:
    """When a container is killed whose start was to be recorded; it may end by itself before.

    Attributes:
        period: seconds after its process was started; None for no such limit.
        line: once its standard output has a line with this in it; "" for none.
        asked: once there is something to read from this descriptor; None for none.
    """

    period: float | None = DEFAULT_PERIOD
    line: str = ""
    asked: int | None = None


class Recorded(NamedTuple):
    """What a run has opened.

    Attributes:
        paths: regular files, from the root, without a leading slash, in order of first use. Those
            that the container has made are among them.
        ended: what ended it.
        code: exit code of its process; 128 + 9 where it was killed.
        lost: opened files that could not be looked at.
    """

    paths: Sequence[bytes]
    ended: Ended
    code: int
    lost: int


def record(containers: Containers, request: RunRequest, until: Until) -> Recorded:
    """Run a throw-away container in the foreground and note which files of its root are opened.

    Args:
        containers: where it is made.
        request: what to run.
        until: when to end it.

    Raises:
        AlreadyExists, NotFound, StartFailed: as `Containers.run`.
        PermissionDenied, NotImplementedHere, ResourceExhausted: as `OpenedFiles.watch`.
    """
    with ExitStack() as stack:
        over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, over)
        return _Run(containers, request, until, over).run()


class _Run:
    """One recorded run; `wake` is an eventfd of its own."""

    def __init__(
        self, containers: Containers, request: RunRequest, until: Until, wake: int
    ) -> None:
        self._containers = containers
        self._until = until
        self._files = OpenedFiles()
        self._request = request._replace(
            throw_away=True, detach=False, pid_file=None, watch=self._files.watch
        )
        self._bundle = containers.bundle(request.id)
        self._why: Ended | None = None
        self._over = threading.Event()
        self._awake = wake

    def run(self) -> Recorded:
        ender = threading.Thread(target=self._end, name="end-recording")
        ender.start()
        try:
            with self._output() as stdout:
                code = self._containers.run(self._request._replace(stdout=stdout))
        finally:
            self._over.set()
            self._wake(Ended.EXIT)
            ender.join()
        return Recorded(self._files.paths, self._why or Ended.EXIT, code, self._files.lost)

    def _wake(self, why: Ended) -> None:
        self._why = self._why or why
        os.eventfd_write(self._awake, 1)

    def _end(self) -> None:
        """Wait for the first reason to end the container, and do it."""
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        if self._until.asked is not None:
            poll.register(self._until.asked, select.POLLIN)
        process = self._process()
        if process is None:
            return
        try:
            period = self._until.period
            ready = poll.poll(None if period is None else period * 1000)
            if self._over.is_set():
                return
            self._why = self._why or (Ended.REQUEST if ready else Ended.PERIOD)
            self._files.stop()
            _kill(process)
        finally:
            os.close(process)

    def _process(self) -> int | None:
        """Return a pidfd of the container's first process once that is there, None if it is not."""
        while not (pid := self._bundle.pid()):
            if self._over.is_set():
                return None
            # Who asks for the end before the start gets it right after the start.
            self._over.wait(_STEP_SECONDS)
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            return None

    @contextmanager
    def _output(self) -> Iterator[int | None]:
        """Give a standard output whose lines are looked at, where one is waited for."""
        if not self._until.line:
            yield self._request.stdout
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._copy, args=(reading,), name="recorded-output")
        thread.start()
        try:
            yield writing
        finally:
            os.close(writing)
            thread.join()
            os.close(reading)

    def _copy(self, reading: int) -> None:
        """Copy the container's output to where it was to go, and look for the line."""
        target = 1 if self._request.stdout is None else self._request.stdout
        wanted = os.fsencode(self._until.line)
        line = b""
        while data := os.read(reading, 65536):
            line += data
            if wanted in line:
                self._wake(Ended.LINE)
            # No more than may be the beginning of it: a line can be endless.
            line = line[max(line.rfind(b"\n") + 1, len(line) - len(wanted)) :]
            _write(target, data)


def _kill(process: int) -> None:
    """Kill the first process, and with it all others of its pid namespace.

    Not by the runtime: its `kill` writes to the bundle, which may be going away at this moment.
    """
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _write(target: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(target, data) :]
        except BrokenPipeError:  # nobody reads it any more; the container goes on
            return
