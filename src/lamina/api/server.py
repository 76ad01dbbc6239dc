"""A gRPC server on unix sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence

from lamina.api.call import Call, Handler, Method, StreamHandler
from lamina.api.connection import Connection
from lamina.api.dispatch import Dispatcher

__all__ = ["Call", "Handler", "Method", "Server", "StreamHandler"]

log = logging.getLogger(__name__)

_BACKLOG = 512
_UNDO_SECONDS = 10.0
"""For how long cancelled calls may undo what they have half done."""


class Server:
    """Serves methods by their paths (`/package.Service/Method`).

    Args:
        methods: what there is to call, looked up anew for each call.
        threads: calls that can run at the same time, beside those on the event loop.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        threads: int = 64,
    ) -> None:
        self._methods = methods
        self._threads = threads

    async def run(
        self, sockets: Sequence[socket.socket], *, stop: asyncio.Event, grace_seconds: float
    ) -> None:
        """Accept connections until `stop` is set, and let running calls come to an end.

        Args:
            sockets: listening unix sockets; closed when this returns.
            stop: ends it.
            grace_seconds: how long calls may go on then before they are cancelled.
        """
        dispatcher = Dispatcher(self._methods, self._threads)
        listeners = [await _listen(each, dispatcher) for each in sockets]
        try:
            await stop.wait()
        finally:
            await _close(sockets, listeners)
            await _wind_up(dispatcher, grace_seconds)


async def _listen(listening: socket.socket, dispatcher: Dispatcher) -> asyncio.Server:
    # `create_unix_server` would remove the socket's file at the end, which is not ours.
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: Connection(dispatcher), sock=listening, backlog=_BACKLOG
    )


async def _close(sockets: Sequence[socket.socket], listeners: Sequence[asyncio.Server]) -> None:
    for each in sockets:
        asyncio.get_running_loop().remove_reader(each)
    # What is accepted already becomes a connection now; a closed listener would only lose it.
    await asyncio.sleep(0)
    for listener in listeners:
        listener.close()


async def _wind_up(dispatcher: Dispatcher, grace_seconds: float) -> None:
    dispatcher.drain()
    if not await dispatcher.quiet(grace_seconds):
        log.warning("cancelling %d calls that are still running", dispatcher.running)
        dispatcher.break_off()
        if not await dispatcher.quiet(_UNDO_SECONDS) and dispatcher.running:
            log.warning("leaving %d calls unfinished", dispatcher.running)
    dispatcher.stop()
