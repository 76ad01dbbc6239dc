"""A snapshotter behind a socket, in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.api.server import Server
from lamina.api.service import snapshots_methods
from lamina.core.snapshot import Snapshotter

GRACE_SECONDS = 10.0


@contextmanager
def served(snapshotter: Snapshotter, path: Path) -> Iterator[RemoteSnapshotter]:
    """Serve a snapshotter on a new socket, as a daemon would, and yield a client of it."""
    server = Server(snapshots_methods(lambda name: snapshotter, _ignore))
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: asyncio.run(_run(server, listener, running)))
        thread.start()
        try:
            loop, stop = running.result()
            with Channel(path) as channel:
                yield RemoteSnapshotter(channel, "served")
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            path.unlink()


async def _run(
    server: Server,
    listener: socket.socket,
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]],
) -> None:
    stop = asyncio.Event()
    running.set_result((asyncio.get_running_loop(), stop))
    await server.run([listener], stop=stop, grace_seconds=GRACE_SECONDS)


def _ignore(*call: object) -> None:
    pass
