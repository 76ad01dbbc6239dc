"""A server of Lamina's transport in a thread, with methods that do what a test needs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lamina.api.server import Call, Method, Server
from lamina.errors import LaminaError, NotFound

WAIT = 10.0
"""Seconds within which everything has to happen that a test waits for."""


class Handlers:
    """The methods, and what they have seen."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self.error: LaminaError | None = None
        self.metadata: Mapping[str, str] = {}
        self.deadline: float | None = None
        self.sent = 0

    def methods(self) -> dict[str, Method]:
        return {
            "/test/Echo": Method(self.echo),
            "/test/Inline": Method(self.echo, inline=True),
            "/test/Fail": Method(self.fail),
            "/test/FailInline": Method(self.fail, inline=True),
            "/test/Crash": Method(self.crash),
            "/test/Wait": Method(self.wait),
            "/test/Hang": Method(self.hang),
            "/test/Repeat": Method(self.repeat, stream=True),
            "/test/RepeatThenFail": Method(self.repeat_then_fail, stream=True),
            "/test/Endless": Method(self.endless, stream=True),
            "/test/Size": Method(self.size),
        }

    def echo(self, request: bytes, call: Call) -> bytes:
        self.metadata, self.deadline = call.metadata, call.deadline
        return request

    def fail(self, request: bytes, call: Call) -> bytes:
        raise NotFound("stat snapshot", request.decode(), hint="look elsewhere")

    def crash(self, request: bytes, call: Call) -> bytes:
        raise ZeroDivisionError("secret")

    def wait(self, request: bytes, call: Call) -> bytes:
        """Work until the client gives up, or `release` is set."""
        self.started.set()
        try:
            while not self.release.wait(0.01):
                call.check()
        except LaminaError as error:
            self.error = error
            raise
        finally:
            self.ended.set()
        return request

    def hang(self, request: bytes, call: Call) -> bytes:
        """Work until `release` is set, whoever gives up meanwhile."""
        self.started.set()
        self.release.wait(WAIT)
        self.ended.set()
        return request

    def repeat(self, request: bytes, call: Call) -> Iterator[bytes]:
        """Take `COUNT SIZE`, yield that many messages of that size."""
        count, size = map(int, request.split())
        for number in range(count):
            yield bytes([number % 251]) * size

    def repeat_then_fail(self, request: bytes, call: Call) -> Iterator[bytes]:
        yield from self.repeat(request, call)
        raise NotFound("the end")

    def endless(self, request: bytes, call: Call) -> Iterator[bytes]:
        self.started.set()
        try:
            while True:
                self.sent += 1
                yield request
        finally:
            self.ended.set()

    def size(self, request: bytes, call: Call) -> bytes:
        return b"%d" % len(request)


class Serving:
    """A running server; `stop` may be called once, from the test's thread."""

    def __init__(
        self, path: Path, methods: Mapping[str, Method], threads: int, grace_seconds: float
    ) -> None:
        self.path = path
        self._grace_seconds = grace_seconds
        self._methods = methods
        self._threads = threads
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = Server(self._methods, threads=self._threads)
        await server.run([self._listening], stop=self._stop, grace_seconds=self._grace_seconds)

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(3 * WAIT)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self.join()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def serving(
    path: Path, methods: Mapping[str, Method], *, threads: int = 64, grace_seconds: float = 5
) -> Iterator[Serving]:
    server = Serving(path, methods, threads, grace_seconds)
    try:
        yield server
    finally:
        server.stop()


def eventually(condition: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Wait until the condition is true; return false if it does not come to be."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
