"""sendmmsg(2), whose count of sent bytes is noted in memory that outlives the process.

The kernel writes the count into the caller's memory in the same call that sends, so that a process
that is killed at any instant leaves a note of exactly what it has sent: nothing, all of it, or,
where it was waiting for room, the first part.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Sequence

from lamina.linux.libc import function


class _IoVec(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    """`struct msghdr` of the kernel's (<linux/socket.h>)."""

    _fields_ = (
        ("msg_name", ctypes.c_void_p),
        ("msg_namelen", ctypes.c_int),
        ("msg_iov", ctypes.POINTER(_IoVec)),
        ("msg_iovlen", ctypes.c_size_t),
        ("msg_control", ctypes.c_void_p),
        ("msg_controllen", ctypes.c_size_t),
        ("msg_flags", ctypes.c_uint),
    )


class _MMsgHdr(ctypes.Structure):
    """`struct mmsghdr`: the message, and how many bytes of it were sent."""

    _fields_ = (("msg_hdr", _MsgHdr), ("msg_len", ctypes.c_uint))


NOTE_SIZE = ctypes.sizeof(_MMsgHdr)
"""Bytes of memory for the note of one call; zeros say that nothing was sent."""

_sendmmsg = function("sendmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def sent_bytes(note: memoryview) -> int:
    """Return what a note says; it is valid in any process that has the memory."""
    return int(_MMsgHdr.from_buffer(note).msg_len)


def send(fd: int, note: memoryview, buffers: Sequence[bytearray | memoryview]) -> int:
    """Send buffers, none empty, to a stream socket, waiting for room; return how many bytes were.

    Args:
        fd: the socket.
        note: `NOTE_SIZE` bytes of memory, zeros or of a call that has sent nothing, aligned to 8.
        buffers: what to send, in one message.

    Raises:
        OSError: EPIPE, ECONNRESET: the connection is broken. Nothing was sent.
    """
    pieces = [(ctypes.c_char * len(buffer)).from_buffer(buffer) for buffer in buffers]
    vector = (_IoVec * len(pieces))()
    for entry, piece in zip(vector, pieces, strict=True):
        entry.iov_base, entry.iov_len = ctypes.addressof(piece), len(piece)
    message = _MMsgHdr.from_buffer(note)
    message.msg_hdr.msg_iov = vector
    message.msg_hdr.msg_iovlen = len(pieces)
    while True:
        try:
            _sendmmsg(fd, ctypes.byref(message), 1, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
        else:
            return int(message.msg_len)
