"""Whether network block devices work on this machine, found out by connecting one."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

from lamina.linux import nbd

_CONTENT = b"lamina".ljust(8 * nbd.SECTOR, b"\0")
_TIMEOUTS = nbd.Timeouts(answer=5, connection=1)


def probe() -> str | None:
    """Read a device that is served by this process; None when it worked, else why not."""
    try:
        return _try(f"lamina-probe-{os.getpid()}-{threading.get_ident()}")
    except OSError as error:
        if error.errno != errno.ENOENT or error.filename:
            return error.strerror or str(error)
    if Path("/sys/module/nbd").exists():
        return "network block devices are for the first network namespace only"
    return "the kernel has no network block devices; as root: modprobe nbd"


def _try(name: str) -> str | None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    server = threading.Thread(target=_serve, args=(ours,), daemon=True)
    with ours, theirs:
        index = nbd.connect(theirs.fileno(), len(_CONTENT), name=name, timeouts=_TIMEOUTS)
        server.start()
        try:
            return _read(index, name)
        finally:
            nbd.disconnect(index)
            server.join()


def _read(index: int, name: str) -> str | None:
    if nbd.find(name) != index:
        return "the kernel knows no names of network block devices; it takes Linux 5.15"
    fd = nbd.open_device(index)
    try:
        content = os.pread(fd, len(_CONTENT), 0)
    finally:
        os.close(fd)
    return None if content == _CONTENT else "a network block device has other bytes than it is sent"


def _serve(connection: socket.socket) -> None:
    """Answer requests until the device is disconnected."""
    while data := connection.recv(nbd.REQUEST.size, socket.MSG_WAITALL):
        request = nbd.parse_request(data)
        if request.kind == nbd.DISC:
            continue
        content = _CONTENT[request.offset : request.offset + request.length]
        connection.sendall(nbd.reply_head(request.handle) + content)
