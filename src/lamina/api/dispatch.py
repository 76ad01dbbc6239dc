"""Runs the handlers of calls: on the event loop, or on threads.

A call that needs a thread costs two hand-offs. The loop puts it into a queue, and the thread gives
back the handler's outcome; all outcomes that are there when the loop wakes up are dealt with at
once, and go out in one write for each connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from lamina.api.call import Method
from lamina.api.status import OK, to_status
from lamina.api.threads import Threads
from lamina.core.cancel import cancellable
from lamina.errors import LaminaError

if TYPE_CHECKING:
    from lamina.api.connection import Connection
    from lamina.api.stream import Stream

log = logging.getLogger(__name__)

_CONNECTIONS = 1024
_HELD = 256 * 1024 * 1024
"""Bytes of unfinished large requests, all connections together."""


class Dispatcher:
    """What all connections of a server share; all but `_run` and below runs on the event loop.

    Args:
        methods: handlers by path.
        threads: as many as there may be.
    """

    def __init__(self, methods: Mapping[str, Method], threads: int) -> None:
        self.methods = methods
        self.connections: set[Connection] = set()
        self.running = 0
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(self._run, threads)
        self._held = 0
        self._is_stopping = False
        self._outcomes: deque[tuple[Stream, Callable[[], None]]] = deque()
        self._is_loop_told = False
        self._quiet = asyncio.Event()

    def add(self, connection: Connection) -> bool:
        """Get to know a connection; false if there are too many, or the server is stopping."""
        if self._is_stopping or len(self.connections) >= _CONNECTIONS:
            return False
        self.connections.add(connection)
        return True

    def discard(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self._tell_if_quiet()

    def hold(self, stream: Stream, size: int) -> bool:
        """Let a call's request occupy `size` bytes; false, and unchanged, if memory is short."""
        held = self._held + size - stream.held
        if size and held > _HELD:
            return False
        self._held, stream.held = held, size
        return True

    def start(self, stream: Stream, message: bytes) -> None:
        """Run the handler of a call's method."""
        method = stream.method
        if method is not None and method.is_inline(message):
            self._outcome(stream, message)()
            return
        stream.is_running = True
        self.running += 1
        self._threads.submit((stream, message))

    def drain(self) -> None:
        """Take no new calls; see `Connection.drain`."""
        self._is_stopping = True
        for connection in list(self.connections):
            connection.drain()

    def break_off(self) -> None:
        """End all calls; see `Connection.break_off`."""
        for connection in list(self.connections):
            connection.break_off()

    async def quiet(self, seconds: float) -> bool:
        """Wait until there are no connections and no running calls; false if that takes longer."""
        self._quiet.clear()
        self._tell_if_quiet()
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """End the threads, each when its call has ended."""
        self._threads.stop()

    def _tell_if_quiet(self) -> None:
        if not self.connections and not self.running:
            self._quiet.set()

    def _run(self, job: tuple[Stream, bytes]) -> None:
        """Run a call, on a thread."""
        stream, message = job
        with cancellable(stream.token):
            outcome = self._outcome(stream, message)
        self._hand_over(stream, partial(self._ended, stream, outcome))

    def _outcome(self, stream: Stream, message: bytes) -> Callable[[], None]:
        """Run a handler; return what to do on the event loop."""
        try:
            stream.token.check()
            assert stream.method is not None
            if stream.method.unary is not None:
                return partial(stream.respond, stream.method.unary(message, stream.call))
            assert stream.method.stream is not None
            return self._pass_on(stream, stream.method.stream(message, stream.call))
        except LaminaError as error:
            return partial(stream.finish, *to_status(error))
        except Exception as error:
            log.exception("call failed: %s", stream.request.path)
            return partial(stream.finish, *to_status(error))

    def _pass_on(self, stream: Stream, responses: Iterator[bytes]) -> Callable[[], None]:
        for response in responses:
            stream.wait_for_room()
            self._hand_over(stream, partial(stream.send, response))
        return partial(stream.finish, OK)

    def _hand_over(self, stream: Stream, outcome: Callable[[], None]) -> None:
        """Have the event loop do something; it is woken only if it does not know already."""
        self._outcomes.append((stream, outcome))
        if self._is_loop_told:
            return
        self._is_loop_told = True
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            log.debug("call ended after the server: %s", stream.request.path)

    def _collect(self) -> None:
        self._is_loop_told = False  # before the first look: what comes after the last is told anew
        sessions = set()
        while self._outcomes:
            stream, outcome = self._outcomes.popleft()
            outcome()
            sessions.add(stream.session)
        for session in sessions:
            session.flush()

    def _ended(self, stream: Stream, outcome: Callable[[], None]) -> None:
        stream.is_running = False
        self.running -= 1
        if stream.is_over:
            stream.session.free(stream)
        else:
            outcome()
        if not self.running:
            self._tell_if_quiet()
