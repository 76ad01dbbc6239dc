"""Listening sockets that the service manager has opened: systemd's sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from lamina.errors import InvalidArgument

FIRST = 3
METRICS = "metrics"
"""`FileDescriptorName` of a socket that is for metrics; any other is for calls."""


class Activated(NamedTuple):
    """Sockets that were handed over; both empty where there are none."""

    calls: Sequence[socket.socket] = ()
    metrics: Sequence[socket.socket] = ()


def activated(environ: MutableMapping[str, str]) -> Activated:
    """Take over what `LISTEN_FDS` counts, and take the variables out of the environment.

    Child processes inherit neither the variables nor the sockets.

    Raises:
        InvalidArgument: one of them is no listening stream socket, or one for calls is not local.
    """
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    # Variables with another process's number were meant for a parent that has passed them on.
    meant = environ.pop("LISTEN_PID", "") == str(os.getpid())
    if not meant or not count.isdecimal():
        return Activated()
    calls, metrics = [], []
    for index, fd in enumerate(range(FIRST, FIRST + int(count))):
        listener = _listener(fd)
        if names[index : index + 1] == [METRICS]:
            metrics.append(listener)
        elif listener.family == socket.AF_UNIX:
            calls.append(listener)
        else:
            listener.close()
            raise InvalidArgument(
                f"serve calls on descriptor {fd}, which is no unix socket",
                hint="give the socket unit a path, or FileDescriptorName=metrics",
            )
    return Activated(calls, metrics)


def _listener(fd: int) -> socket.socket:
    with suppress(OSError):
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        if listener.type == socket.SOCK_STREAM and listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            listener.setblocking(False)
            return listener
        listener.detach()
    raise InvalidArgument(
        f"use descriptor {fd}: it is no listening stream socket",
        hint="the socket unit needs ListenStream= and Accept=no",
    )
