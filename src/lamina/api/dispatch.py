"""Runs the handlers of calls: on the event loop, or in a pool of threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING

from lamina.api.call import Method
from lamina.api.status import OK, to_status
from lamina.core.cancel import cancellable
from lamina.errors import LaminaError

if TYPE_CHECKING:
    from lamina.api.connection import Connection
    from lamina.api.stream import Stream

log = logging.getLogger(__name__)


class Dispatcher:
    def __init__(self, methods: Mapping[str, Method], threads: int) -> None:
        self.methods = methods
        self.connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._limit = threads
        self._threads = 0
        self._running = 0
        self._jobs: SimpleQueue[tuple[Stream, bytes] | None] = SimpleQueue()
        self._results: deque[tuple[Stream, Callable[[], object]]] = deque()
        self._told = False

    def start(self, stream: Stream, message: bytes) -> None:
        method = stream.method
        if method.inline and method.unary is not None:
            try:
                response = method.unary(message, stream.call)
            except Exception as error:
                stream.finish(*_status(error))
                return
            stream.respond(response)
            return
        self._running += 1
        if self._running > self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._work, name="grpc-call", daemon=True).start()
        self._jobs.put((stream, message))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            stream, message = job
            try:
                with cancellable(stream.token):
                    self._run(stream, message)
            except Exception as error:
                status = _status(error)
                self._tell(stream, lambda stream=stream, status=status: stream.finish(*status))
            self._tell(stream, self._done)

    def _run(self, stream: Stream, message: bytes) -> None:
        stream.token.check()
        if stream.method.unary is not None:
            response = stream.method.unary(message, stream.call)
            self._tell(stream, lambda: stream.is_open and stream.respond(response))
            return
        for each in stream.method.stream(message, stream.call):
            stream.ahead.acquire()
            stream.token.check()
            self._tell(stream, lambda each=each: stream.send(each))
        self._tell(stream, lambda: stream.finish(OK))

    def _done(self) -> None:
        self._running -= 1

    def _tell(self, stream: Stream, what: Callable[[], object]) -> None:
        self._results.append((stream, what))
        if not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._told = False
        connections = set()
        while self._results:
            stream, what = self._results.popleft()
            what()
            connections.add(stream.connection)
        for connection in connections:
            connection.sender.flush()


def _status(error: Exception) -> tuple[int, str]:
    if not isinstance(error, LaminaError):
        log.error("handler failed", exc_info=error)
    return to_status(error)
