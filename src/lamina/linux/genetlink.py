"""Generic netlink: requests to a part of the kernel that goes by a name (<linux/genetlink.h>).

All integers are of this machine's byte order. A request is carried out in the thread that sends it,
before send(2) returns, and answered with an acknowledgement.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

NETLINK_GENERIC = 16
NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLMSG_ERROR = 2
GENL_ID_CTRL = 16
"""The family that knows the others."""
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
NLA_TYPE_MASK = 0x3FFF
"""Without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""

MESSAGE = struct.Struct("=IHHII")
"""`struct nlmsghdr`: nlmsg_len, nlmsg_type, nlmsg_flags, nlmsg_seq, nlmsg_pid."""
HEADER = struct.Struct("=BBH")
"""`struct genlmsghdr`: cmd, version, reserved."""
ATTRIBUTE = struct.Struct("=HH")
"""`struct nlattr`: nla_len, nla_type."""
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
_ERROR = struct.Struct("=i")
_ID = struct.Struct("=H")
_ALIGNMENT = 4
_ANSWER_BYTES = 65536

Attributes = dict[int, bytes]


class Message(NamedTuple):
    """One message of an answer.

    Attributes:
        kind: number of the family, or NLMSG_ERROR, which is an acknowledgement too.
        body: what follows `nlmsghdr`.
    """

    kind: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """Return an attribute, padded for the next one; payloads of nested ones are attributes."""
    length = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + bytes(-length % _ALIGNMENT)


def attributes(data: bytes) -> Attributes:
    """Parse attributes that follow each other; of several of a kind the last.

    Raises:
        OSError: EPROTO: one reaches past the end, or is shorter than its head.
    """
    return dict(_attributes(data))


def messages(data: bytes) -> Iterator[Message]:
    """Parse what one recv(2) returned.

    Raises:
        OSError: EPROTO: as `attributes`.
    """
    position = 0
    while position < len(data):
        if len(data) - position < MESSAGE.size:
            raise _broken("message")
        length, kind, *_ = MESSAGE.unpack_from(data, position)
        if not MESSAGE.size <= length <= len(data) - position:
            raise _broken("message")
        yield Message(kind, data[position + MESSAGE.size : position + length])
        position += length + -length % _ALIGNMENT


class Family:
    """A family of the kernel's; a context manager that closes the socket. For one thread.

    Args:
        name: of the family.
        version: that the requests are of.

    Raises:
        OSError: ENOENT: the kernel has none of that name, or it is for the first network
            namespace only; EPROTONOSUPPORT: no generic netlink.
    """

    def __init__(self, name: str, version: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_GENERIC)
        self._version = version
        self._family = GENL_ID_CTRL
        try:
            asked = [attribute(CTRL_ATTR_FAMILY_NAME, os.fsencode(name) + b"\0")]
            [found, *_] = self.request(CTRL_CMD_GETFAMILY, asked)
            (self._family,) = _ID.unpack(found[CTRL_ATTR_FAMILY_ID])
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def request(self, command: int, parts: Iterable[bytes]) -> list[Attributes]:
        """Have a command carried out; return the attributes of each message of the answer.

        Args:
            command: of the family.
            parts: from `attribute`.

        Raises:
            OSError: what the command says; EPERM without CAP_SYS_ADMIN, as a rule.
        """
        body = HEADER.pack(command, self._version, 0) + b"".join(parts)
        flags = NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(MESSAGE.pack(MESSAGE.size + len(body), self._family, flags, 0, 0) + body)
        found: list[Attributes] = []
        while True:
            for message in messages(self._socket.recv(_ANSWER_BYTES)):
                if message.kind == NLMSG_ERROR:
                    check(message.body)
                    return found
                found.append(attributes(message.body[HEADER.size :]))


def check(body: bytes) -> None:
    """Raise the error of a message of kind NLMSG_ERROR, unless it is an acknowledgement.

    Raises:
        OSError: that error; EPROTO: the message is cut off.
    """
    if len(body) < _ERROR.size:
        raise _broken("error")
    (number,) = _ERROR.unpack_from(body)
    if number:
        raise OSError(-number, os.strerror(-number))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if len(data) - position < ATTRIBUTE.size:
            raise _broken("attribute")
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if not ATTRIBUTE.size <= length <= len(data) - position:
            raise _broken("attribute")
        yield kind & NLA_TYPE_MASK, data[position + ATTRIBUTE.size : position + length]
        position += length + -length % _ALIGNMENT


def _broken(what: str) -> OSError:
    return OSError(errno.EPROTO, f"netlink {what} of a wrong length")
