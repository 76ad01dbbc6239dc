"""Network block devices: devices whose blocks a process has (<linux/nbd-netlink.h>, <linux/nbd.h>).

The kernel sends requests through a stream socket that it is given, TCP or AF_UNIX; whoever has the
other end answers them, in any order. Commands need CAP_SYS_ADMIN, and the first network namespace.

A device is given a name, its backend identifier (Linux 5.15), by which `find` finds it. When its
connection breaks, requests wait for another to be given (`reconfigure`). Those that had been sent
are sent again, as far as they were not answered, when their time is over.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamina.linux.genetlink import U32, U64, Attributes, Family, attribute

FAMILY = "nbd"
VERSION = 1
ATTR_INDEX = 1
ATTR_SIZE_BYTES = 2
ATTR_BLOCK_SIZE_BYTES = 3
ATTR_TIMEOUT = 4
ATTR_SERVER_FLAGS = 5
ATTR_CLIENT_FLAGS = 6
ATTR_SOCKETS = 7
ATTR_DEAD_CONN_TIMEOUT = 8
ATTR_BACKEND_IDENTIFIER = 10
SOCK_ITEM = 1
SOCK_FD = 1
COMMAND_CONNECT = 1
COMMAND_DISCONNECT = 2
COMMAND_RECONFIGURE = 3

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
CFLAG_DISCONNECT_ON_CLOSE = 1 << 1

READ = 0
DISC = 2
"""The device is being disconnected; the only request without an answer."""
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
REQUEST = struct.Struct(">II8sQI")
"""`struct nbd_request`: magic, type, handle, from, len."""
REPLY = struct.Struct(">II8s")
"""`struct nbd_reply`: magic, error, handle; of a read without an error, its bytes follow."""
MAX_READ = 32 << 20
"""Bytes; more than the kernel ever asks for at once."""
QUEUE_DEPTH = 128
"""Requests that the kernel sends before it has an answer to one of them."""
SECTOR = 512

_BLOCK = Path("/sys/block")


class Request(NamedTuple):
    """A request of the kernel.

    Attributes:
        kind: READ, DISC, ...
        handle: what its answer is known by.
        offset: of the first byte.
        length: bytes.
    """

    kind: int
    handle: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Timeouts:
    """What the kernel waits for, in seconds.

    Attributes:
        answer: to a request; then it breaks the connection, and sends the request again through the
            next. Not 0, with which it waits for ever.
        connection: another one, where there is none; then every read fails until there is.
    """

    answer: int
    connection: int


def connect(socket: int, size: int, *, name: str, timeouts: Timeouts) -> int:
    """Make a read-only device of a socket; return its number N, of /dev/nbdN.

    Args:
        socket: descriptor of a stream socket; may be closed afterwards.
        size: bytes, of which only whole sectors count; may be 0 until `reconfigure` says more.
        name: backend identifier.
        timeouts: how long the kernel waits.

    Raises:
        OSError: ENOENT: the kernel has no network block devices; EPERM.
    """
    parts = [
        attribute(ATTR_SIZE_BYTES, U64.pack(size)),
        attribute(ATTR_BLOCK_SIZE_BYTES, U64.pack(SECTOR)),
        attribute(ATTR_TIMEOUT, U64.pack(timeouts.answer)),
        attribute(ATTR_DEAD_CONN_TIMEOUT, U64.pack(timeouts.connection)),
        attribute(ATTR_SERVER_FLAGS, U64.pack(FLAG_HAS_FLAGS | FLAG_READ_ONLY)),
        _sockets(socket),
        _backend(name),
    ]
    for answer in _command(COMMAND_CONNECT, parts):
        if ATTR_INDEX in answer:
            (index,) = U32.unpack(answer[ATTR_INDEX])
            return int(index)
    raise OSError(errno.EPROTO, "the kernel does not say which device it is")


def reconfigure(
    index: int,
    *,
    name: str,
    socket: int | None = None,
    size: int | None = None,
    disconnect_on_close: bool = False,
) -> None:
    """Give a device another socket, its size, or an end.

    Args:
        index: N of /dev/nbdN.
        name: that it was connected with.
        socket: as in `connect`; closed at once, without an error, while the last one is in order.
        size: bytes.
        disconnect_on_close: disconnect it when nobody has it open any more.

    Raises:
        OSError: EINVAL: it is not connected, or has another name.
    """
    parts = [attribute(ATTR_INDEX, U32.pack(index)), _backend(name)]
    if size is not None:
        parts.append(attribute(ATTR_SIZE_BYTES, U64.pack(size)))
    if socket is not None:
        parts.append(_sockets(socket))
    if disconnect_on_close:
        parts.append(attribute(ATTR_CLIENT_FLAGS, U64.pack(CFLAG_DISCONNECT_ON_CLOSE)))
    _command(COMMAND_RECONFIGURE, parts)


def disconnect(index: int) -> None:
    """Have every read fail from now on; the device is free when nobody has it open any more.

    Raises:
        OSError: EINVAL: there is no such device.
    """
    _command(COMMAND_DISCONNECT, [attribute(ATTR_INDEX, U32.pack(index))])


def find(name: str) -> int | None:
    """Return the number of the device that was connected with this name; None if none is."""
    for entry in _BLOCK.glob("nbd*"):
        with suppress(OSError):  # no name, not connected, or just going
            if (entry / "backend").read_text() == f"{name}\n":
                return int(entry.name.removeprefix("nbd"))
    return None


def path_of(index: int) -> Path:
    """Return the device file."""
    return Path(f"/dev/nbd{index}")


def open_device(index: int) -> int:
    """Open a device to read; return a descriptor that the caller closes.

    The first to open it since it has a size waits until the kernel has looked for partitions.

    Raises:
        OSError: ENODEV: the file in /dev is another device; ENOENT.
    """
    path = path_of(index)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    number = os.fstat(fd).st_rdev
    if (_BLOCK / path.name / "dev").read_text() == f"{os.major(number)}:{os.minor(number)}\n":
        return fd
    os.close(fd)
    raise OSError(errno.ENODEV, "no file of the kernel's for the device", str(path))


def has_size(index: int) -> bool:
    """Tell whether a device has a sector.

    Raises:
        OSError: ENOENT: there is no such device.
    """
    return (_BLOCK / path_of(index).name / "size").read_text() != "0\n"


def set_queue(index: int, name: str, value: str) -> None:
    """Set one of the settings of a device's queue, for speed; what cannot be set stays as it is."""
    with suppress(OSError):
        (_BLOCK / path_of(index).name / "queue" / name).write_text(value)


def parse_request(data: bytes | memoryview) -> Request:
    """Parse what recv(2) returned for one request.

    Raises:
        OSError: EPROTO: it is cut off, or no request.
    """
    if len(data) < REQUEST.size:
        raise OSError(errno.EPROTO, "request of a network block device is cut off")
    magic, kind, handle, offset, length = REQUEST.unpack_from(data)
    if magic != REQUEST_MAGIC:
        raise OSError(errno.EPROTO, f"request of a network block device has magic {magic:#x}")
    return Request(kind, handle, offset, length)


def reply_head(handle: bytes, error: int = 0) -> bytes:
    """Return the head of an answer; `error` is an errno, all of which the reader gets as EIO."""
    return REPLY.pack(REPLY_MAGIC, error, handle)


def _sockets(fd: int) -> bytes:
    return attribute(ATTR_SOCKETS, attribute(SOCK_ITEM, attribute(SOCK_FD, U32.pack(fd))))


def _backend(name: str) -> bytes:
    return attribute(ATTR_BACKEND_IDENTIFIER, os.fsencode(name) + b"\0")


def _command(command: int, parts: Iterable[bytes]) -> list[Attributes]:
    with Family(FAMILY, VERSION) as family:
        return family.request(command, parts)
