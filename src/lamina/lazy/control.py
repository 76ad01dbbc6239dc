"""The control socket of a root's lazy worker: one line of JSON each way.

Only root and the worker's own user are listened to: a request names code that the worker runs.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from lamina import errors
from lamina.errors import DeadlineExceeded, Internal, LaminaError, Unavailable
from lamina.lazy.served import GateName

SOCKET = "control.sock"
LAUNCH_LOCK = "launch.lock"
"""Held by who starts a holder, and by a worker that is about to end for good."""
ANSWER_SECONDS = 30.0
LINE_BYTES = 1 << 20
_ATTEMPTS = 3
"""How many workers are asked, one after the other, that end before they answer."""

_CREDENTIALS = struct.Struct("=iII")


class Add(msgspec.Struct, tag_field="op", tag="add", frozen=True):
    """Serve a layer; answered with `Added`. Again is no error."""

    directory: str
    factory: str
    gate: GateName


class Remove(msgspec.Struct, tag_field="op", tag="remove", frozen=True):
    """Serve a layer no more, that nothing has mounted any more; answered with `Done`."""

    directory: str


class Status(msgspec.Struct, tag_field="op", tag="status", frozen=True):
    """Tell what is served; answered with `Report`."""


class Prefetch(msgspec.Struct, tag_field="op", tag="prefetch", frozen=True):
    """Begin to fetch in the background what a layer's `wanted` names; answered with `Done`.

    Then, if `everything` says so, the rest.
    """

    directory: str
    everything: bool = True


class Wait(msgspec.Struct, tag_field="op", tag="wait", frozen=True):
    """Begin to make a layer complete, and answer with `Done` when it is, or with the error.

    After an error it goes on in the background, some time later.
    """

    directory: str
    seconds: float


class Upgrade(msgspec.Struct, tag_field="op", tag="upgrade", frozen=True):
    """Have a new worker, of the program as it is now, take over; answered with `Done` before."""


class Done(msgspec.Struct, tag_field="is", tag="done", frozen=True):
    """It is done."""


class Added(msgspec.Struct, tag_field="is", tag="added", frozen=True):
    """The layer is served: `path` is the file to mount."""

    path: str


class LayerStatus(msgspec.Struct, frozen=True):
    """One layer.

    Attributes:
        directory: of the layer.
        gate: through which it is read.
        size: bytes of the cache file.
        local_bytes: bytes of units that are local.
        complete: whether all are.
        doubt: as `Served.doubt`.
        error: why it cannot be served; "" if it is.
        stage: what is being fetched in the background (`background.Stage`).
        reason: why that has paused.
        resume_seconds: when it will go on then.
    """

    directory: str
    gate: GateName
    size: int
    local_bytes: int
    complete: bool
    doubt: bool
    error: str
    stage: str = ""
    reason: str = ""
    resume_seconds: float = 0.0


class Report(msgspec.Struct, tag_field="is", tag="report", frozen=True):
    """The process id of the worker, and the layers."""

    pid: int
    layers: list[LayerStatus]


class Failed(msgspec.Struct, tag_field="is", tag="failed", frozen=True):
    """A `LaminaError`: its class and what it is made of."""

    kind: str
    what: str
    subject: str
    hint: str


Request = Add | Remove | Status | Prefetch | Wait | Upgrade
Answer = Done | Added | Report | Failed
AnswerKind = TypeVar("AnswerKind", bound=msgspec.Struct)

_decode_answer = msgspec.json.Decoder(Answer).decode


def ask(directory: Path, request: Request, kind: type[AnswerKind]) -> AnswerKind:
    """Ask the worker of this directory, and return its answer, of the kind that the request has.

    Raises:
        Unavailable: no worker is there.
        DeadlineExceeded: it did not answer in time.
        LaminaError: what the worker says.
    """
    seconds = ANSWER_SECONDS + (request.seconds if isinstance(request, Wait) else 0)
    for _ in range(_ATTEMPTS):
        line = _exchange(directory, request, seconds)
        if line:
            break
    else:
        raise Unavailable("ask the lazy worker: it ended before it answered", directory)
    answer = _decode_answer(line)
    if isinstance(answer, Failed):
        raise decode_error(answer)
    if not isinstance(answer, kind):
        raise Internal(f"ask the lazy worker: {type(answer).__name__} is no answer", directory)
    return answer


def _exchange(directory: Path, request: Request, seconds: float) -> bytes:
    """Return the line that a worker answers with; b"" when it ended before, killed or upgraded.

    Another may be there by then: each request can be made again.
    """
    try:
        with _connected(directory, seconds) as connection:
            connection.sendall(msgspec.json.encode(request) + b"\n")
            return read_line(connection)
    except TimeoutError as error:
        raise DeadlineExceeded("ask the lazy worker", directory) from error
    except (ConnectionResetError, BrokenPipeError):
        return b""
    except OSError as error:
        raise Unavailable(f"ask the lazy worker: {error.strerror}", directory) from error


def read_line(connection: socket.socket) -> bytes:
    """Return a line without its end; b"" when the other side has closed.

    Raises:
        OSError: EMSGSIZE: the line is longer than `LINE_BYTES`.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
        if len(data) > LINE_BYTES:
            raise OSError(errno.EMSGSIZE, "line too long")
    return bytes(data[:-1])


@contextmanager
def socket_address(directory: Path) -> Iterator[str]:
    """Give the socket's address during the body; its path may be longer than addresses may be."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def may_ask(connection: socket.socket) -> bool:
    """Tell whether the other side is root or this process's user."""
    size = _CREDENTIALS.size
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    uid = _CREDENTIALS.unpack(data)[1]
    return uid in {0, os.geteuid()}


def encode_error(error: LaminaError) -> Failed:
    """Return an error as an answer."""
    kind = type(error).__name__
    return Failed(kind, error.what, error.subject, error.hint)


def decode_error(failed: Failed) -> LaminaError:
    """Return the error of an answer, as near to its class as what was sent allows."""
    found = getattr(errors, failed.kind, LaminaError)
    # The class whose constructor takes these three: every class of its own shape is below one.
    kind: type[LaminaError] = next(base for base in found.__mro__ if "__init__" not in vars(base))
    return kind(failed.what, failed.subject, hint=failed.hint)


@contextmanager
def _connected(directory: Path, seconds: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        with socket_address(directory) as address:
            connection.connect(address)
        yield connection
