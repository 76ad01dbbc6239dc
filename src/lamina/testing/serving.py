"""A snapshotter behind a gRPC server of its own, as a containerd would reach it."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lamina.api.call import Method
from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.api.server import Server
from lamina.api.service import snapshots_methods
from lamina.core.snapshot import Snapshotter

GRACE_SECONDS = 10.0
TIMEOUT_SECONDS = 120.0


@contextmanager
def served(snapshotter: Snapshotter) -> Iterator[RemoteSnapshotter]:
    """Serve it on a socket in a temporary directory, and yield a client of it."""
    methods = snapshots_methods(lambda name: snapshotter, lambda *call: None)
    with served_methods(methods) as channel:
        yield RemoteSnapshotter(channel, "contract")


@contextmanager
def served_methods(methods: Mapping[str, Method]) -> Iterator[Channel]:
    """Serve them on a socket in a temporary directory, and yield a channel to it."""
    with tempfile.TemporaryDirectory(prefix="lamina-") as name:
        path = Path(name, "sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        with _running(Server(methods), listener), Channel(path, timeout=TIMEOUT_SECONDS) as channel:
            yield channel


@contextmanager
def _running(server: Server, listener: socket.socket) -> Iterator[None]:
    """Run the server in a thread for the length of the block."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    running = server.run([listener], stop=stop, grace_seconds=GRACE_SECONDS)
    thread = threading.Thread(target=loop.run_until_complete, args=(running,))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
