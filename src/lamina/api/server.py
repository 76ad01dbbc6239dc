"""A gRPC server on unix sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence

from lamina.api.call import Call, Handler, Method, Observer, StreamHandler
from lamina.api.connection import Connection
from lamina.api.dispatch import Dispatcher

__all__ = ["Call", "Handler", "Method", "Observer", "Server", "StreamHandler"]


class Server:
    """Serves methods by their paths (`/package.Service/Method`).

    Args:
        methods: what there is to call.
        threads: calls that can run at the same time, beside those on the event loop.
        observe: told of every call that has ended.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        threads: int = 64,
        observe: Observer | None = None,
    ) -> None:
        self._methods = methods
        self._threads = threads
        self._observe = observe

    async def run(
        self, sockets: Sequence[socket.socket], *, stop: asyncio.Event, grace_seconds: float
    ) -> None:
        """Accept connections until `stop` is set, and let running calls come to an end.

        Args:
            sockets: listening unix sockets; closed when this returns.
            stop: ends it.
            grace_seconds: how long calls may go on then before they are cancelled.
        """
        loop = asyncio.get_running_loop()
        dispatcher = Dispatcher(self._methods, self._threads)
        servers = [
            await loop.create_unix_server(lambda: Connection(dispatcher), sock=each)
            for each in sockets
        ]
        await stop.wait()
        for server in servers:
            server.close()
        for connection in list(dispatcher.connections):
            connection.close()
